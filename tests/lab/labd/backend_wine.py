"""The backend `wine`: commands are run by Wine's cmd.exe, on Wine's c:\\ and registry. No Windows either.

    Command ─► wine64 winrshost.exe ─► cmd.exe /s /c "LINE" ─► …       all in one job: killing the first ends all
                   └── exit code, 32 bits, in c:\\lab\\codes
    shutdown.exe ── loopback ─► Switch ─► Power ─► the server's restart ─► `down`, `up`

One prefix is one machine: copied by links from the template of scripts/wine-lab. A restart ends the prefix's
wineserver and with it every process; the registry and c:\\ stay, and BootId counts on.
"""

import os
import re
import shutil
import socketserver
import subprocess
import threading

from . import cmdline, soap
from . import streams as io
from .machine import Machine
from .shells import Killed
from .soap import Fault
from .streams import Sent, Stream, Streams

# Debian's `wine` is a script that asks for the 32-bit Wine on each start.
LOADER = "/usr/lib/wine/wine64"
SERVER = "/usr/lib/wine/wineserver64"
CMD_LINE = 8191  # characters that cmd.exe takes
PROCESS_LINE = 32767  # characters that CreateProcess takes
BOOT_KEY = r"HKLM\SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters"
END_LIMIT = 20  # seconds for a wineserver to write the registry and end


class WineMachine(Machine):
    """Its folders are the prefix's, made by Wine."""

    def prepare(self):
        pass

    def copy(self, template):
        """Makes the prefix around `root` from the template; files are linked, but those that Wine writes in place."""
        prefix = os.path.dirname(self.root)
        shutil.copytree(template, prefix, symlinks=True, copy_function=self._link, dirs_exist_ok=True)

    @staticmethod
    def _link(source, target):
        if source.endswith(".reg"):
            return shutil.copy2(source, target)
        os.link(source, target)
        return target


class WineBackend:
    def __init__(self, machine, power):
        self.machine = machine
        self.prefix = os.path.dirname(machine.root)
        self.codes = os.path.join(machine.root, "lab", "codes")
        self.count = 0
        self.lock = threading.Lock()
        self.life = threading.Lock()  # one of `up` and `down` at a time
        self.switch = Switch(power)
        os.makedirs(self.codes, exist_ok=True)

    def environment(self, boot):
        return {
            "PATH": "/usr/bin:/bin", "HOME": self.prefix, "USER": self.machine.user, "LOGNAME": self.machine.user,
            "LANG": "C.UTF-8", "WINESERVER": SERVER, "WINEPREFIX": self.prefix, "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "winemenubuilder.exe=d", "LABPWSH_PRELUDE": r"C:\lab\prelude.ps1",
            "LAB_POWER": str(self.switch.server_address[1]), "LAB_BOOT_ID": boot.id,
            "LAB_BOOT_TIME": f"{boot.time:.3f}", "LAB_BOOT_COUNT": str(boot.number),
            # .NET maps its code twice, to write it and to run it; under Wine it dies of that when it collects garbage.
            "DOTNET_EnableWriteXorExecute": "0",
            # What it keeps for debuggers, and counts for a second, better translation.
            "DOTNET_EnableDiagnostics": "0", "DOTNET_TieredPGO": "0",
        }  # fmt: skip

    # The machine's life

    def up(self, boot):
        """The boot begins: Wine's server and services, and the count that Windows' kernel keeps."""
        words = ["reg", "add", BOOT_KEY, "/v", "BootId", "/t", "REG_DWORD", "/d", str(boot.number), "/f"]
        with self.life:
            try:
                self._wine(boot, SERVER, "-p")
                self._wine(boot, LOADER, *words)
            except BaseException:
                self._end(boot)
                raise

    def down(self, boot):
        """The boot ends: every process of the prefix, and what was said to the registry is on disk."""
        with self.life:
            self._end(boot)

    def _end(self, boot):
        for word in ("-k", "-w"):
            try:
                self._wine(boot, SERVER, word, check=False, timeout=END_LIMIT)
            except subprocess.TimeoutExpired:
                self._wine(boot, SERVER, "-k9", check=False)

    def _wine(self, boot, *words, check=True, timeout=None):
        subprocess.run(
            words, env=self.environment(boot), cwd=self.machine.root, check=check, timeout=timeout,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    # Commands

    def check(self, line, skip_cmd):
        """Raises the fault of a command that cannot be started."""
        if len(line) > (PROCESS_LINE if skip_cmd else CMD_LINE):
            raise Fault(soap.LINE_TOO_LONG)
        if skip_cmd and not self._is_program(cmdline.split_name(line)[0]):
            raise Fault(soap.FILE_NOT_FOUND)

    def _is_program(self, name):
        path = name if re.match(r"[A-Za-z]:", name) else "C:\\windows\\system32\\" + name
        if name.lower() in ("powershell", "powershell.exe"):
            return True
        return any(os.path.isfile(self.machine.native(path + ending)) for ending in ("", ".exe"))

    def start(self, command):
        threading.Thread(target=self._run, args=(command,), daemon=True).start()

    def _run(self, command):
        shell = command.shell
        with self.lock:
            self.count += 1
            name = f"{self.count}"
        streams = Streams(Sent(command.stdin), Stream(command, "stdout"), Stream(command, "stderr"))
        environment = {
            **self.environment(shell.boot),
            **{f"LAB_SET_{variable}": value for variable, value in shell.variables.items()},
            "LAB_LINE": command.line,
            "LAB_PLAIN": "1" if command.skip_cmd else "",
            "LAB_DIRECTORY": shell.directory or self.machine.home,
            "LAB_CODE": f"C:\\lab\\codes\\{name}",
        }
        code = 250
        try:
            ended = io.run([LOADER, "winrshost.exe"], environment, self.machine.root, streams, command.when_killed)
            code = self._code(os.path.join(self.codes, name), ended)
        except Killed:
            pass
        except Exception as error:  # a defect of the lab must not look like a quiet command
            try:
                streams.stderr.write(f"lab: failed: {type(error).__name__}: {error}\r\n".encode())
            except Killed:
                pass
        finally:
            command.finish(code)

    @staticmethod
    def _code(path, ended):
        """What winrshost.exe told; without a word of it, its own end, which is then no success."""
        try:
            with open(path, encoding="ascii") as file:
                told = int(file.read())
            os.remove(path)
        except (OSError, ValueError):
            return ended or 250
        return told


class Switch(socketserver.ThreadingTCPServer):
    """Where shutdown.exe asks: words divided by tabs in, code and text out."""

    daemon_threads = True

    def __init__(self, power):
        super().__init__(("127.0.0.1", 0), Asked)
        self.power = power
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Asked(socketserver.StreamRequestHandler):
    def handle(self):
        words = self.rfile.readline().decode("utf-8", "replace").rstrip("\n")
        code, text = self.server.power.shutdown(words.split("\t") if words else [])
        self.wfile.write(f"{code}\t{text}".encode())
