"""The guest's start program: what a Windows does by itself, from power-on to power-off.

    c:\\ mounted ─► boot counted, updates settled ─► generalized? answer file from a removable drive ─► account, logon
        ─► the first logon's commands, in the real engine with doubles ─► a script makes the WinRM listener ─► WinRM

Who owns what: this process owns the state, the hives, the serial port and the WinRM server; PowerShell's doubles and
the programs of c:\\ ask it over a socket (`calls.py`). A restart is the machine's own. It says what it does on
standard error (the second serial port); the first is COM1 and belongs to the scripts.
"""

import os
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import tty

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import answer
import disk
import hives
from calls import Calls
from labd import interpreter as cmd
from labd.control import Control
from labd.engine import Engine, read_answers
from labd.interpreter import Interpreter
from labd.machine import Machine, Power
from labd.streams import Nothing, Streams
from state import SID, State
from sysprep import Sysprep
from tasks import Scheduler
from updates import Updates
from winrm import WinRm

ROOT, PLACE, NAME = "/lab/c", "/run/lab", "LAB-NO-WINDOWS"
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EVENT = struct.Struct("@llHHi")  # struct input_event of linux/input.h
KEY, POWER_BUTTON = 1, 116
IN_PROGRESS = 1115  # ERROR_SHUTDOWN_IN_PROGRESS


class GuestMachine(Machine):
    """With removable drives."""

    def __init__(self, root, name, user, drives):
        super().__init__(root, name, user)
        self.drives = drives  # letter in lower case: folder

    def native(self, path, directory="C:\\"):
        plain = path.strip().strip('"')
        if plain[1:2] == ":" and plain[:1].lower() in self.drives:
            return Machine(self.drives[plain[0].lower()], self.name, self.user).native("C:" + plain[2:], "C:\\")
        if any(plain.startswith(folder + "/") for folder in self.drives.values()):
            return plain
        return super().native(path, directory)


class GuestPower(Power):
    """Once it goes down, nobody stops it."""

    def __init__(self, act):
        super().__init__(None, lambda _: act("reboot"), lambda: act("poweroff"))
        self.going = False

    def shutdown(self, words):
        if self.going:
            return IN_PROGRESS, "A system shutdown is in progress.(1115)"
        return super().shutdown(words)

    def _now(self, what):
        self.going = True
        super()._now(what)


class Guest:
    def __init__(self):
        self.root, self.place, self.name = ROOT, PLACE, NAME
        os.makedirs(PLACE, mode=0o700, exist_ok=True)
        self.state = State(ROOT)
        self.registry = hives.Registry(ROOT)
        with open("/proc/stat", encoding="ascii") as file:
            self.boot_time = next(int(line.split()[1]) for line in file if line.startswith("btime"))
        self.sessions = {}  # number: user, the desktops
        self.drives = {}
        self.serial = None
        self.serial_lock = threading.Lock()
        self.power = GuestPower(self.act)
        self.control = Control(f"{PLACE}/control", None, self.power)
        folder = f"{HERE}/pwsh" if os.path.isdir(f"{HERE}/pwsh") else ""
        answers = f"{ROOT}/lab/answers.json"
        self.engine = Engine(
            folder, PLACE, [f"{HERE}/guest/doubles.ps1"], f"{PLACE}/control", read_answers(answers if os.path.exists(answers) else None)
        )  # fmt: skip
        self.updates = Updates(self.state, self.registry)
        self.tasks = Scheduler(self)
        self.sysprep = Sysprep(self)
        self.winrm = WinRm(self)

    @staticmethod
    def say(text):
        print(f"lab: {text}", file=sys.stderr, flush=True)

    def act(self, what):
        self.say(f"{what} at {time.monotonic():.1f} s")
        subprocess.run(["systemctl", "--no-block", what], check=False)

    # Who and where

    def machine(self, user):
        return GuestMachine(self.root, self.name, user, self.drives)

    def variables(self, user, task):
        return {
            "LAB_ROOT": self.root, "LAB_NAME": self.name, "LAB_USER": user, "LAB_STATE": self.place,
            "LAB_CONTROL": f"{self.place}/control", "LAB_GUEST": f"{self.place}/guest", "LAB_TASK": task,
            "LAB_ENGINE": self.engine.program and os.path.dirname(self.engine.program) or "", "LAB_PYTHON": sys.executable,
            "LAB_PROGRAM": f"{HERE}/program.py", "LAB_PATHS": f"{HERE}/paths.so",
            "LAB_DRIVES": f"{self.place}/drive-",
        }  # fmt: skip

    def interpreter(self, user, when_killed=lambda kill: None, task=""):
        machine = self.machine(user)
        return Interpreter(
            machine, self.power, self.engine, machine.environment(), machine.home, when_killed, threading.Event(),
            self.variables(user, task),
        )  # fmt: skip

    def account(self, name):
        name = name.rsplit("\\", 1)[-1].lower()
        return next((account for each, account in self.state["accounts"].items() if each.lower() == name), None)

    def add_account(self, name, password, groups):
        rid = 500 if name == "Administrator" else self.state["next_rid"]
        if rid != 500:
            self.state["next_rid"] += 1
        self.state["accounts"][name] = {"sid": f"{SID}-{rid}", "password": password, "groups": groups}

    def log_on(self, name):
        """Makes the profile, as a first logon does."""
        sid, home = self.state["accounts"][name]["sid"], f"C:\\Users\\{name}"
        self.registry.set(rf"{hives.PROFILES}\{sid}", "ProfileImagePath", "ExpandString", home)
        for folder in ("AppData/Local/Temp", "AppData/Roaming", "Documents"):
            os.makedirs(f"{self.root}/Users/{name}/{folder}", exist_ok=True)
        for value in ("LastLoggedOnUser", "LastLoggedOnSAMUser"):
            self.registry.set(hives.LOGON_UI, value, "String", f".\\{name}")
        self.registry.set(hives.LOGON_UI, "LastLoggedOnUserSID", "String", sid)
        self.sessions[1] = name

    def in_use(self, name):
        """Whether a profile is loaded: by a desktop, by WinRM, or by a task."""
        server = self.winrm.server
        shells = server is not None and any(shell.owner == name.lower() for shell in list(server.boot.shells.values()))
        tasks = any(self.state["tasks"][each]["user"].lower() == name.lower() for each in list(self.tasks.running))
        return shells or tasks or name in self.sessions.values()

    def write_serial(self, text):
        with self.serial_lock:
            if self.serial is None:
                self.serial = os.open("/dev/ttyS0", os.O_RDWR | os.O_NOCTTY)
                tty.setraw(self.serial)
            octets = text.encode("ascii", "replace")
            while octets:
                octets = octets[os.write(self.serial, octets) :]
            termios.tcdrain(self.serial)

    # From power-on to the first logon

    def watch_network(self):
        """Each network card asks for an address, and goes on asking."""
        for card in sorted(os.listdir("/sys/class/net")):
            if card != "lo":
                subprocess.Popen(
                    ["busybox", "udhcpc", "-f", "-q", "-n", "-t", "20", "-T", "1", "-i", card, "-s", f"{HERE}/udhcpc"],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip

    def watch_button(self):
        """The power button, as `powerdown` of the machine presses it."""

        def watch(path):
            with open(path, "rb", buffering=0) as events:
                while octets := events.read(EVENT.size):
                    if EVENT.unpack(octets)[2:] == (KEY, POWER_BUTTON, 1):
                        self.act("poweroff")

        for name in os.listdir("/dev/input") if os.path.isdir("/dev/input") else []:
            if name.startswith("event"):
                threading.Thread(target=watch, args=(f"/dev/input/{name}",), daemon=True).start()

    def mount_drives(self):
        """Everything removable that has a file system; letters from D on. A USB disk shows a moment after its port."""
        generalized = self.registry.get(hives.STATE, "ImageState") != "IMAGE_STATE_COMPLETE"
        until = time.monotonic() + (10 if generalized else 0)
        while not self._try_drives() and time.monotonic() < until:
            time.sleep(0.5)

    def _try_drives(self):
        own, _ = disk.place()
        letter = ord("d")
        for name in sorted(os.listdir("/sys/class/block")):
            device = f"/dev/{name}"
            if name.startswith(("loop", "ram", "fd", own)):
                continue
            folder = f"{self.place}/drive-{chr(letter)}"
            os.makedirs(folder, exist_ok=True)
            if self._mount(device, folder):
                self.drives[chr(letter)] = folder
                letter += 1
        return bool(self.drives)

    @staticmethod
    def _mount(device, folder):
        # Of a CD's names those that Windows reads: Joliet's.
        for kind, options in (("vfat", "ro,shortname=mixed,utf8"), ("iso9660", "ro,norock"), ("udf", "ro")):
            if subprocess.run(["mount", "-t", kind, "-o", options, device, folder], capture_output=True, check=False).returncode == 0:
                return True
        return False

    def watch_cd(self):
        """A CD drive keeps its letter, whatever lies in it; what is in it is looked at every second, as Windows does."""

        def label(device):
            # The volume's, in the descriptor in sector 16; opening it is what makes Linux look.
            try:
                with open(device, "rb", buffering=0) as cd:
                    cd.seek(16 * 2048)
                    return cd.read(2048)
            except OSError:
                return None

        def watch(device, folder):
            seen = label(device)
            while True:
                time.sleep(1)
                now = label(device)
                if now == seen:
                    continue
                subprocess.run(["umount", "-l", folder], capture_output=True, check=False)
                if now is not None:
                    self._mount(device, folder)
                self.say(f"the medium in {device} has changed: {'none' if now is None else now[40:72].decode('latin-1').strip()}")
                seen = now

        for name in sorted(os.listdir("/sys/class/block")):
            if name.startswith("sr"):
                device = f"/dev/{name}"
                mounted = [letter for letter, of in self.drives.items() if self._is_mounted(device, of)]
                letter = mounted[0] if mounted else chr(ord(max(self.drives, default="c")) + 1)
                folder = self.drives.setdefault(letter, f"{self.place}/drive-{letter}")
                os.makedirs(folder, exist_ok=True)
                threading.Thread(target=watch, args=(device, folder), daemon=True).start()

    @staticmethod
    def _is_mounted(device, folder):
        with open("/proc/self/mounts", encoding="utf-8") as mounts:
            return any(line.split()[:2] == [device, folder] for line in mounts)

    def first_boot(self):
        """Follows an answer file, if Windows is generalized and there is one; the first logon's commands."""
        if self.registry.get(hives.STATE, "ImageState") == "IMAGE_STATE_COMPLETE":
            return []
        found = answer.search(self.root, self.drives.values())
        if found is None:
            self.say("generalized, and no answer file: waits for a user, as a Windows would")
            return []
        path, octets = found
        try:
            given = answer.Answer(octets)
        except answer.Bad as bad:
            self.say(f"Windows could not parse or process the unattend answer file {path}: {bad}")
            return []
        self.say(f"follows {path}")
        for name, (password, groups) in given.accounts.items():
            self.add_account(name, password, groups)
        if given.administrator is not None:
            self.add_account("Administrator", given.administrator, ["Administrators"])
        self.state.save()
        with open(f"{self.root}/Windows/Panther/unattend.xml", "wb") as file:
            file.write(given.blanked())
        if given.logon is not None:
            user, password = given.logon
            for name, value in [("AutoAdminLogon", "1"), ("DefaultUserName", user), ("DefaultPassword", password)]:
                self.registry.set(hives.WINLOGON, name, "String", value)
            self.registry.set(hives.WINLOGON, "AutoLogonCount", "DWord", 0)
            self.log_on(user)
        self.registry.set(hives.STATE, "ImageState", "String", "IMAGE_STATE_COMPLETE")
        return [(user, line) for line in given.commands] if given.logon else []

    def begin(self):
        self.watch_network()
        self.engine.prepare(self.machine("SYSTEM"), cmd.PROGRAMS)
        self.registry.set(hives.PREFETCH, "BootId", "DWord", (self.registry.get(hives.PREFETCH, "BootId") or 0) + 1)
        self.updates.booted()
        for task in self.state["tasks"].values():
            if task["result"] == 0x41301:
                task["result"] = 0x41306
        for service in self.state["services"].values():
            service["Status"] = "Running" if service["StartType"].startswith("Automatic") else "Stopped"
        self.state.save()
        self.watch_button()
        self.mount_drives()
        self.watch_cd()
        Calls(self).listen(f"{self.place}/guest")
        commands = self.first_boot()
        self.winrm.look()
        for user, line in commands:
            threading.Thread(target=self._first_logon, args=(user, line), daemon=True).start()

    def _first_logon(self, user, line):
        class Said:
            def write(self, octets):
                Guest.say("first logon: " + octets.decode("utf-8", "replace").rstrip())

        said = Said()
        code = self.interpreter(user, task=user).line(line, Streams(Nothing(), said, said))
        self.say(f"first logon ended with {code} at {time.monotonic():.1f} s")

    def end(self):
        self.winrm.stop()
        for task in self.tasks.look(None):
            if task["state"] == "Running":
                self.tasks.stop(task["name"])
        os.sync()


def main():
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    guest = Guest()
    guest.say(f"started at {time.monotonic():.1f} s")
    try:
        guest.begin()
        guest.say(f"ready at {time.monotonic():.1f} s")
        # A wait with an end lets signals through.
        while not over.wait(1):
            pass
    finally:
        guest.end()


if __name__ == "__main__":
    sys.exit(main())
