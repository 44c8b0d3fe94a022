"""The lab's machine: its `c:\\`, its environment, its power. No Windows, and it says so.

Paths are Windows' own to the client; `native` and `shown` go between them and the folder
that is `c:\\`. Names are found whatever their case, as NTFS has it, for the lab's own
commands; PowerShell on Linux sees the folder's real case.
"""

import json
import os
import re
import socket
import subprocess
import threading

FOLDERS = [
    "Windows/System32", "Windows/Temp", "Windows/Panther", "Program Files", "Program Files (x86)", "ProgramData",
    "Users/Public", "Users/{user}/AppData/Local/Temp", "Users/{user}/AppData/Roaming", "Users/{user}/Documents",
]  # fmt: skip
# Other spellings that people use, for programs to whom case matters.
SPELLINGS = [("windows", "Windows"), ("users", "Users"), ("Windows/temp", "Temp"), ("Windows/system32", "System32")]

SHUTTING_DOWN = 1190  # ERROR_SHUTDOWN_IS_SCHEDULED
NOT_SHUTTING_DOWN = 1116  # ERROR_NO_SHUTDOWN_IN_PROGRESS


class NoPath(Exception):
    """Not on the lab's disk."""


class Machine:
    def __init__(self, root, name, user):
        self.root = os.path.realpath(root)
        self.name = name
        self.user = user

    def prepare(self):
        """Makes the folders that every Windows has."""
        for folder in FOLDERS:
            os.makedirs(os.path.join(self.root, folder.format(user=self.user)), exist_ok=True)
        for link, target in SPELLINGS:
            path = os.path.join(self.root, link)
            if not os.path.lexists(path):
                os.symlink(target, path)

    @property
    def is_system(self):
        """Whether this is LocalSystem, as which tasks run."""
        return self.user == "SYSTEM"

    @property
    def home(self):
        return "C:\\Windows\\System32\\config\\systemprofile" if self.is_system else f"C:\\Users\\{self.user}"

    @property
    def temp(self):
        return "C:\\Windows\\Temp" if self.is_system else self.home + "\\AppData\\Local\\Temp"

    def environment(self):
        """As a cmd of this machine sees it."""
        return {
            "ALLUSERSPROFILE": "C:\\ProgramData",
            "APPDATA": self.home + "\\AppData\\Roaming",
            "COMPUTERNAME": self.name,
            "ComSpec": "C:\\Windows\\system32\\cmd.exe",
            "LOCALAPPDATA": self.home + "\\AppData\\Local",
            "OS": "Windows_NT",
            "Path": "C:\\Windows\\system32;C:\\Windows",
            "PATHEXT": ".COM;.EXE;.BAT;.CMD",
            "PROCESSOR_ARCHITECTURE": "AMD64",
            "ProgramData": "C:\\ProgramData",
            "ProgramFiles": "C:\\Program Files",
            "ProgramFiles(x86)": "C:\\Program Files (x86)",
            "PUBLIC": "C:\\Users\\Public",
            "SystemDrive": "C:",
            "SystemRoot": "C:\\Windows",
            "TEMP": self.temp,
            "TMP": self.temp,
            "USERDOMAIN": self.name,
            "USERNAME": self.user,
            "USERPROFILE": self.home,
            "windir": "C:\\Windows",
        }

    def native(self, path, directory="C:\\"):
        """The Linux path of a Windows path. Raises `NoPath`."""
        path = path.strip().strip('"')
        # Programs that were told a translated path hand it back.
        if path.startswith(self.root):
            return path
        path = path.replace("/", "\\")
        drive = re.match(r"([A-Za-z]):", path)
        if drive:
            if drive[1].lower() != "c":
                raise NoPath(path)
            path = path[2:]
            if not path.startswith("\\"):
                path = directory[2:] + "\\" + path
        elif not path.startswith("\\"):
            path = directory[2:] + "\\" + path
        found = [self.root]
        for part in path.split("\\"):
            if part in ("", "."):
                continue
            if part == "..":
                found = found[:-1] or [self.root]
                if not found[0] == self.root:
                    found = [self.root]
                continue
            found.append(self._spelled(os.path.join(*found), part))
        return os.path.join(*found)

    @staticmethod
    def _spelled(folder, name):
        if os.path.lexists(os.path.join(folder, name)):
            return name
        try:
            return next((each for each in os.listdir(folder) if each.lower() == name.lower()), name)
        except OSError:
            return name

    def shown(self, native):
        inside = os.path.relpath(native, self.root)
        return "C:\\" + ("" if inside == "." else inside.replace("/", "\\"))


class Power:
    """shutdown.exe: asks the hook, or plays it by itself.

    `hook` is a program called with `r`, `s` or `a` and the delay in seconds; a guest's
    own one really restarts. Without it the server ends its boot and comes back.
    """

    def __init__(self, hook, restart, power_off):
        self.hook = hook
        self.restart = restart
        self.power_off = power_off
        self.lock = threading.Lock()
        self.timer = None

    def shutdown(self, words):
        """(exit code, what it prints) of `shutdown WORDS`."""
        what, delay, words = None, 30.0, list(words)
        while words:
            word = words.pop(0).lower().replace("-", "/", 1)
            if word in ("/r", "/s", "/a"):
                what = word[1]
            elif word in ("/t", "/c", "/d") and words:
                value = words.pop(0)
                if word == "/t":
                    if not value.isdigit():
                        return 87, "lab: shutdown: no delay"
                    delay = float(value)
            elif word not in ("/f", "/hybrid"):
                return 250, f"lab: not implemented: shutdown {word}"
        if what is None:
            return 250, "lab: not implemented: shutdown without /r, /s or /a"
        if self.hook:
            return subprocess.run(
                [self.hook, what, f"{delay:g}"], stdin=subprocess.DEVNULL, check=False, start_new_session=True
            ).returncode, ""
        with self.lock:
            if what == "a":
                if self.timer is None:
                    return (
                        NOT_SHUTTING_DOWN,
                        "Unable to abort the system shutdown because no shutdown was in progress.(1116)",
                    )
                self.timer.cancel()
                self.timer = None
                return 0, ""
            if self.timer is not None:
                return SHUTTING_DOWN, "A system shutdown has already been scheduled.(1190)"
            # Even /t 0 takes Windows a moment: the command's own end may or may not be told.
            self.timer = threading.Timer(max(delay, 0.3), self._now, [what])
            self.timer.daemon = True
            self.timer.start()
        return 0, ""

    def _now(self, what):
        with self.lock:
            self.timer = None
        if what == "r":
            self.restart(None)
        else:
            self.power_off()


class RemotePower:
    """The same, for a program that runs beside the server: asks through the control socket."""

    def __init__(self, control):
        self.control = control

    def shutdown(self, words):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.control)
            sock.sendall(json.dumps({"do": "shutdown", "words": list(words)}).encode() + b"\n")
            answer = json.loads(sock.makefile().readline())
        return answer["code"], answer["text"]
