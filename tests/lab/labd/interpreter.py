"""cmd.exe of the lab: the few commands that clients need, done honestly.

What is not here ends with exit code 250 and "lab: not implemented: …" on standard error, so
that no test can pass because something silently did nothing. Texts are those of an English
Windows where the lab has the command.
"""

import base64
import binascii
import hashlib
import os
import re
import shutil
import time

from . import cmdline
from . import streams as io
from .cmdline import Both, For, If, Pipe, Unsupported
from .engine import NOT_HERE
from .machine import NoPath

NO_FILE = "The system cannot find the file specified."
NO_PATH = "The system cannot find the path specified."


class Exit(Exception):
    def __init__(self, code):
        super().__init__(f"exit {code}")
        self.code = code


class Failed(Exception):
    """A command that says why and ends with `code`."""

    def __init__(self, text, code=1):
        super().__init__(text)
        self.code = code


class Interpreter:
    def __init__(self, machine, power, engine, variables, directory, when_killed, killed, lab):
        self.machine = machine
        self.power = power
        self.engine = engine
        self.variables = variables
        self.directory = directory or machine.home
        self.when_killed = when_killed
        self.killed = killed
        self.lab = lab  # the lab's own variables, for programs beside the server
        self.code = 0

    # Running a line

    def line(self, line, streams):
        """What `cmd /c line` does; its exit code."""
        try:
            return self._run(self._parse(line), streams)
        except Exit as end:
            return end.code
        except Unsupported as what:
            return self._not_here(str(what), streams)

    def program(self, name, words, streams):
        """A program with its words, as CreateProcess or another program starts it."""
        act = PROGRAMS.get(stem(name))
        if act is None:
            return self._not_here(name, streams)
        try:
            return act(self, words, streams)
        except Exit as end:
            return end.code
        except Unsupported as what:
            return self._not_here(str(what), streams)
        except NoPath:
            self._say(streams.stderr, NO_PATH)
            return 1
        except Failed as failed:
            self._say(streams.stderr, str(failed))
            return failed.code

    def _parse(self, line):
        return cmdline.Parser(
            cmdline.expand(line, {**self.variables, "ERRORLEVEL": str(self.code), "CD": self.directory})
        ).parse()

    def _not_here(self, what, streams):
        self._say(streams.stderr, f"lab: not implemented: {what}")
        return NOT_HERE

    def _run(self, node, streams):
        if self.killed.is_set():
            raise Exit(1)
        if isinstance(node, Both):
            code = self._run(node.left, streams)
            if node.operator == "&" or (node.operator == "&&") == (code == 0):
                code = self._run(node.right, streams)
            return code
        if isinstance(node, Pipe):
            given = streams.stdin
            for part in node.parts[:-1]:
                kept = io.Kept()
                self._run(part, io.Streams(given, kept, streams.stderr))
                given = io.Octets(kept.octets)
            return self._run(node.parts[-1], io.Streams(given, streams.stdout, streams.stderr))
        if isinstance(node, If):
            return self._if(node.rest, streams)
        if isinstance(node, For):
            for line in node.lines():
                self.code = self._run(cmdline.Parser(line).parse(), streams)
            return self.code
        self.code = self._simple(node, streams)
        return self.code

    def _if(self, rest, streams):
        wanted, fold = True, False
        while found := re.match(r"(not|/i)\s+", rest, re.IGNORECASE):
            if found[1].lower() == "not":
                wanted = not wanted
            else:
                fold = True
            rest = rest[found.end() :]
        word = r'("[^"]*"|\S+)'
        if found := re.match(rf"exist\s+{word}\s+", rest, re.IGNORECASE):
            try:
                holds = os.path.exists(self.path(found[1]))
            except NoPath:  # on a drive that is not there
                holds = False
        elif found := re.match(r"errorlevel\s+(\d+)\s+", rest, re.IGNORECASE):
            holds = self.code >= int(found[1])
        elif found := re.match(r"defined\s+(\S+)\s+", rest, re.IGNORECASE):
            holds = found[1].upper() in {name.upper() for name in self.variables}
        elif found := re.match(rf'("[^"]*"|[^\s=]+)\s*==\s*{word}\s+', rest):
            left, right = found[1], found[2]
            holds = left.lower() == right.lower() if fold else left == right
        else:
            raise Unsupported(f"if {rest}")
        if holds != wanted:
            return 0
        return self._run(cmdline.Parser(rest[found.end() :]).parse(), streams)

    def _simple(self, node, streams):
        opened = []
        try:
            streams = self._redirected(node, streams, opened)
            name, rest = cmdline.split_name(node.text)
            builtin = BUILTINS.get(name.lower())
            if builtin is not None:
                return builtin(self, rest, streams)
            if stem(name) == "cmd":
                return self._inner(rest, streams)
            if stem(name) in PROGRAMS:
                return PROGRAMS[stem(name)](self, cmdline.split_arguments(rest), streams)
            if not node.text.strip():
                return 0
            return self._not_here(name, streams)
        except Failed as failed:
            self._say(streams.stderr, str(failed))
            return failed.code
        except NoPath:
            self._say(streams.stderr, NO_PATH)
            return 1
        finally:
            for file in opened:
                file.close()

    def _redirected(self, node, streams, opened):
        made = io.Streams(streams.stdin, streams.stdout, streams.stderr)
        for handle, kind, target in node.redirections:
            if kind == "<":
                try:
                    with open(self.path(target), "rb") as file:
                        made.stdin = io.Octets(file.read())
                except OSError as error:
                    raise Failed(NO_FILE) from error
                continue
            if kind == "&":
                sink = made.stdout if target == 1 else made.stderr
            elif target.lower() == "nul":
                sink = io.Nothing()
            else:
                try:
                    sink = io.File(self.path(target), kind == ">>")
                except OSError as error:
                    raise Failed(NO_PATH) from error
                opened.append(sink)
            if handle == 1:
                made.stdout = sink
            elif handle == 2:
                made.stderr = sink
            else:
                raise Unsupported(f"redirection of handle {handle}")
        return made

    # What commands use

    def path(self, path):
        return self.machine.native(path, self.directory)

    def native_directory(self):
        found = self.machine.native(self.directory)
        return found if os.path.isdir(found) else self.machine.root

    @staticmethod
    def _say(stream, text):
        stream.write((text + "\r\n").encode())

    def paths(self, rest):
        """Words that are no switches, and the switches in lower case."""
        words = cmdline.split_arguments(rest)
        return [w for w in words if not re.match(r"/\w", w)], {w.lower() for w in words if re.match(r"/\w", w)}

    # cmd's own commands

    def echo(self, rest, streams):
        if rest[:1] in (".", ":", ","):
            text = rest[1:]
        elif not rest.strip():
            text = "ECHO is on."
        elif rest.strip().lower() in ("on", "off"):
            return 0
        else:
            text = rest[1:]
        self._say(streams.stdout, text)
        return 0

    def type(self, rest, streams):
        names, _ = self.paths(rest)
        for name in names:
            try:
                with open(self.path(name), "rb") as file:
                    while octets := file.read(1 << 15):
                        streams.stdout.write(octets)
            except OSError as error:
                raise Failed(NO_FILE) from error
        return 0 if names else self._syntax(streams)

    def _syntax(self, streams):
        self._say(streams.stderr, "The syntax of the command is incorrect.")
        return 1

    def delete(self, rest, streams):
        names, switches = self.paths(rest)
        if switches - {"/f", "/q"}:
            raise Unsupported(f"del {' '.join(sorted(switches))}")
        for name in names:
            if "*" in name or "?" in name:
                raise Unsupported("del with wildcards")
            path = self.path(name)
            if not os.path.isfile(path):
                self._say(streams.stdout, f"Could Not Find {self.machine.shown(path)}")
            else:
                os.remove(path)
        return 0 if names else self._syntax(streams)

    def make(self, rest, streams):
        names, _ = self.paths(rest)
        for name in names:
            path = self.path(name)
            if os.path.lexists(path):
                raise Failed(f"A subdirectory or file {name} already exists.")
            os.makedirs(path)
        return 0 if names else self._syntax(streams)

    def remove(self, rest, streams):
        names, switches = self.paths(rest)
        for name in names:
            path = self.path(name)
            if not os.path.isdir(path):
                raise Failed(NO_FILE, 2)
            if "/s" in switches:
                shutil.rmtree(path)
            elif os.listdir(path):
                raise Failed("The directory is not empty.", 145)
            else:
                os.rmdir(path)
        return 0 if names else self._syntax(streams)

    def copy(self, rest, streams):
        names, switches = self.paths(rest)
        if len(names) != 2 or "+" in names[0] or switches - {"/y", "/b"}:
            raise Unsupported(f"copy{rest}")
        return self._carry(names, shutil.copyfile, "copied", streams)

    def move(self, rest, streams):
        names, switches = self.paths(rest)
        if len(names) != 2 or switches - {"/y"}:
            raise Unsupported(f"move{rest}")
        return self._carry(names, os.replace, "moved", streams)

    def _carry(self, names, act, done, streams):
        source, target = self.path(names[0]), self.path(names[1])
        if not os.path.isfile(source):
            raise Failed(NO_FILE)
        if os.path.isdir(target):
            target = os.path.join(target, os.path.basename(source))
        try:
            act(source, target)
        except OSError as error:
            raise Failed(NO_PATH) from error
        self._say(streams.stdout, f"        1 file(s) {done}.")
        return 0

    def exit(self, rest, streams):
        words = [word for word in rest.split() if word.lower() != "/b"]
        raise Exit(int(words[0]) if words and re.fullmatch(r"-?\d+", words[0]) else self.code)

    def set(self, rest, streams):
        text = rest.strip()
        if text.startswith("/"):
            raise Unsupported(f"set {text}")
        if text.startswith('"') and text.endswith('"'):
            text = text[1:-1]
        name, assigned, value = text.partition("=")
        if assigned:
            self.variables = {k: v for k, v in self.variables.items() if k.upper() != name.upper()}
            if value:
                self.variables[name] = value
            return 0
        shown = sorted((n, v) for n, v in self.variables.items() if n.upper().startswith(name.upper()))
        if not shown:
            raise Failed(f"Environment variable {name} not defined")
        for each, value in shown:
            self._say(streams.stdout, f"{each}={value}")
        return 0

    def cd(self, rest, streams):
        words = [word for word in cmdline.split_arguments(rest) if word.lower() != "/d"]
        if not words:
            self._say(streams.stdout, self.directory)
            return 0
        path = self.path(words[0])
        if not os.path.isdir(path):
            raise Failed(NO_PATH)
        self.directory = self.machine.shown(path)
        return 0

    def dir(self, rest, streams):
        names, switches = self.paths(rest)
        if switches - {"/b"} or any("*" in name for name in names):
            raise Unsupported(f"dir{rest}")
        path = self.path(names[0]) if names else self.native_directory()
        if not os.path.exists(path):
            raise Failed("File Not Found")
        folder, entries = (path, sorted(os.listdir(path))) if os.path.isdir(path) else os.path.split(path)
        entries = [entries] if isinstance(entries, str) else entries
        entries = [name for name in entries if not os.path.islink(os.path.join(folder, name))]
        if "/b" not in switches:
            self._say(streams.stdout, f" Directory of {self.machine.shown(folder)}\r\n")
        for name in entries:
            place = os.path.join(folder, name)
            stamp = time.strftime("%m/%d/%Y  %I:%M %p", time.localtime(os.stat(place).st_mtime))
            size = "<DIR>         " if os.path.isdir(place) else f"{os.path.getsize(place):14,d}"
            self._say(streams.stdout, name if "/b" in switches else f"{stamp}    {size} {name}")
        return 0

    def nothing(self, rest, streams):
        return 0

    def version(self, rest, streams):
        self._say(streams.stdout, "\r\nKiln lab (no Windows)")
        return 0

    # Programs

    def cmd(self, words, streams):
        """With words from a program: a word alone is the whole line, as within `cmd /c "…"`."""
        words = list(words)
        while words and re.match(r"/[a-bd-z]", words[0], re.IGNORECASE):
            words.pop(0)
        if not words or words[0].lower() != "/c":
            raise Failed("lab: not implemented: cmd without /c", NOT_HERE)
        words = words[1:]
        line = words[0] if len(words) == 1 else " ".join(f'"{w}"' if " " in w else w for w in words)
        return self._child(line, streams)

    def _inner(self, rest, streams):
        """With its text: what follows /c, without the first and the last quote if it begins with one."""
        found = re.match(r"\s*(?:/[a-bd-z]\S*\s+)*/c\s*(.*)", rest, re.IGNORECASE | re.DOTALL)
        if not found:
            raise Failed("lab: not implemented: cmd without /c", NOT_HERE)
        line = found[1].rstrip()
        if line.startswith('"') and (last := line.rfind('"')) > 0:
            line = line[1:last] + line[last + 1 :]
        return self._child(line, streams)

    def _child(self, line, streams):
        return Interpreter(
            self.machine,
            self.power,
            self.engine,
            dict(self.variables),
            self.directory,
            self.when_killed,
            self.killed,
            self.lab,
        ).line(line, streams)

    def powershell(self, words, streams):
        return self.engine.run(words, self, streams)

    def shutdown(self, words, streams):
        code, text = self.power.shutdown(words)
        if text:
            self._say(streams.stderr, text)
        return code

    def hostname(self, words, streams):
        self._say(streams.stdout, self.machine.name)
        return 0

    def whoami(self, words, streams):
        domain = "nt authority" if self.machine.is_system else self.machine.name
        self._say(streams.stdout, f"{domain}\\{self.machine.user}".lower())
        return 0

    def codepage(self, words, streams):
        self._say(streams.stdout, f"Active code page: {words[0] if words else 65001}")
        return 0

    def more(self, words, streams):
        while octets := streams.stdin.read():
            streams.stdout.write(octets)
        return 0

    def sort(self, words, streams):
        octets = b""
        while got := streams.stdin.read():
            octets += got
        for line in sorted(octets.decode("utf-8", "replace").splitlines(), key=str.lower):
            self._say(streams.stdout, line)
        return 0

    def ping(self, words, streams):
        """A clock, as scripts use it; nothing is sent anywhere."""
        if len(words) != 3 or words[0].lower() != "-n" or words[2] not in ("127.0.0.1", "localhost", "::1"):
            raise Failed("lab: not implemented: ping to elsewhere", NOT_HERE)
        for count in range(int(words[1])):
            if count and self.killed.wait(1):
                raise Exit(1)
            self._say(streams.stdout, "Reply from 127.0.0.1: bytes=32 time<1ms TTL=128")
        return 0

    def certutil(self, words, streams):
        force = "-f" in (word.lower() for word in words)
        words = [word for word in words if word.lower() != "-f"]
        verb = words[0].lower().replace("/", "-", 1) if words else ""
        if (
            verb == "-hashfile"
            and len(words) == 3
            and words[2].upper() in ("MD5", "SHA1", "SHA256", "SHA384", "SHA512")
        ):
            digest = hashlib.new(words[2].lower(), self._read(words[1])).hexdigest()
            self._say(streams.stdout, f"{words[2].upper()} hash of {words[1]}:\r\n{digest}")
        elif verb == "-decode" and len(words) == 3:
            text = self._read(words[1])
            target = self.path(words[2])
            if os.path.exists(target) and not force:
                raise Failed(
                    "DecodeToFile returned The file exists. 0x80070050 (WIN32: 80 ERROR_FILE_EXISTS)", 0x80070050
                )
            lines = [line for line in text.split() if not line.startswith(b"-----")]
            try:
                plain = base64.b64decode(b"".join(lines), validate=True)
            except binascii.Error as error:
                raise Failed("DecodeToFile returned The data is invalid. 0x8007000d (WIN32: 13)", 0x8007000D) from error
            with open(target, "wb") as file:
                file.write(plain)
            self._say(streams.stdout, f"Input Length = {len(text)}\r\nOutput Length = {len(plain)}")
        else:
            raise Failed(f"lab: not implemented: certutil {verb}", NOT_HERE)
        self._say(streams.stdout, f"CertUtil: {verb} command completed successfully.")
        return 0

    def _read(self, name):
        try:
            with open(self.path(name), "rb") as file:
                return file.read()
        except OSError as error:
            raise Failed("CertUtil: The system cannot find the file specified.", 0x80070002) from error


def stem(name):
    """`C:\\Windows\\system32\\WHOAMI.EXE` is `whoami`."""
    name = name.replace("/", "\\").rsplit("\\", 1)[-1].lower()
    return name[:-4] if name.endswith((".exe", ".com")) else name


BUILTINS = {
    "cd": Interpreter.cd, "chdir": Interpreter.cd, "cls": Interpreter.nothing, "copy": Interpreter.copy,
    "del": Interpreter.delete, "dir": Interpreter.dir, "echo": Interpreter.echo, "erase": Interpreter.delete,
    "exit": Interpreter.exit, "md": Interpreter.make, "mkdir": Interpreter.make, "move": Interpreter.move,
    "rd": Interpreter.remove, "rem": Interpreter.nothing, "rmdir": Interpreter.remove, "set": Interpreter.set,
    "type": Interpreter.type, "ver": Interpreter.version,
}  # fmt: skip
PROGRAMS = {
    "certutil": Interpreter.certutil, "chcp": Interpreter.codepage, "cmd": Interpreter.cmd,
    "hostname": Interpreter.hostname, "more": Interpreter.more, "ping": Interpreter.ping,
    "powershell": Interpreter.powershell, "shutdown": Interpreter.shutdown, "sort": Interpreter.sort,
    "whoami": Interpreter.whoami,
}  # fmt: skip
