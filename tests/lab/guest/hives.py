"""The registry's local machine: real hives on c:\\, read and written by hivex (not the lab's own work).

Each change is a new file that takes the old one's place, so a hive is whole at any moment. `CurrentControlSet` is the
set that `Select` names, as in a running Windows. Paths come as PowerShell has them; other roots than HKLM are not here.
"""

import base64
import os
import re
import struct
import threading

import hivex

CONFIG = "Windows/System32/config"
HIVES = {"software": "SOFTWARE", "system": "SYSTEM", "sam": "SAM"}
TYPES = {"String": 1, "ExpandString": 2, "Binary": 3, "DWord": 4, "MultiString": 7, "QWord": 11}
STATE = r"SOFTWARE\Microsoft\Windows\CurrentVersion\Setup\State"
WINLOGON = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\Winlogon"
PROFILES = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\ProfileList"
LICENSING = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\SoftwareProtectionPlatform"
TASKS = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\Schedule\TaskCache\Tree"
PREFETCH = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters"
UPDATE_RESTART = r"SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired"
LOGON_UI = r"SOFTWARE\Microsoft\Windows\CurrentVersion\Authentication\LogonUI"


class NoKey(Exception):
    """There is no such key, value or hive."""


def empty():
    """A hive of one empty key and its security descriptor: hivex can change hives, not make one.

    After M. Suhanov's "Windows registry file format specification": base block, one bin, `nk`, `sk`.
    """
    none, name, first = 0xFFFFFFFF, b"ROOT", 32

    def cell(octets):
        size = (len(octets) + 11) // 8 * 8
        return struct.pack("<i", -size) + octets.ljust(size - 4, b"\0")

    def key(security):
        head = struct.pack("<HQII", 0x2C, 0, 0, none) + struct.pack("<IIII", 0, 0, none, none)
        head += struct.pack("<IIII", 0, none, security, none) + struct.pack("<IIIII", 0, 0, 0, 0, 0)
        return b"nk" + head + struct.pack("<HH", len(name), 0) + name

    security = first + len(cell(key(0)))
    descriptor = struct.pack("<BBHIIII", 1, 0, 0x8000, 0, 0, 0, 0)
    cells = cell(key(security))
    cells += cell(b"sk" + struct.pack("<HIIII", 0, security, security, 1, len(descriptor)) + descriptor)
    free = 4096 - first - len(cells)
    block = b"hbin" + struct.pack("<IIQQI", 0, 4096, 0, 0, 0) + cells + struct.pack("<i", free) + bytes(free - 4)
    # Equal sequence numbers: nothing waits in a log.
    head = b"regf" + struct.pack("<IIQIIIIIII", 1, 1, 0, 1, 5, 0, 1, first, 4096, 1)
    head = head.ljust(508, b"\0")
    total = 0
    for (word,) in struct.iter_unpack("<I", head):
        total ^= word
    return (head + struct.pack("<I", total)).ljust(4096, b"\0") + block


def encoded(kind, value):
    """The octets of a value."""
    if kind in (1, 2):
        return (str(value) + "\0").encode("utf-16-le")
    if kind == 4:
        return struct.pack("<I", int(value) & 0xFFFFFFFF)
    if kind == 11:
        return struct.pack("<Q", int(value) & (1 << 64) - 1)
    if kind == 7:
        return ("".join(str(each) + "\0" for each in value) + "\0").encode("utf-16-le")
    if kind == 3:
        return bytes(value)
    raise ValueError(f"a value of type {kind}")


def decoded(kind, octets):
    """What JSON can hold of a value."""
    if kind in (1, 2):
        return octets.decode("utf-16-le", "replace").split("\0")[0]
    if kind == 4:
        return struct.unpack("<i", octets)[0]
    if kind == 11:
        return struct.unpack("<q", octets)[0]
    if kind == 7:
        return [each for each in octets.decode("utf-16-le", "replace").split("\0") if each]
    return base64.b64encode(octets).decode()


class Registry:
    def __init__(self, root):
        self.folder = os.path.join(root, CONFIG)
        self.lock = threading.RLock()

    def create(self):
        """Empty hives, where there are none."""
        for name in HIVES.values():
            path = os.path.join(self.folder, name)
            if not os.path.exists(path):
                with open(path, "wb") as file:
                    file.write(empty())

    def _place(self, path):
        path = re.sub(r"^(Microsoft\.PowerShell\.Core\\)?(Registry::)?(HKLM:|HKEY_LOCAL_MACHINE)?[\\/]?", "", path, flags=re.IGNORECASE)
        parts = [part for part in re.split(r"[\\/]", path) if part]
        if not parts or parts[0].lower() not in HIVES:
            raise NoKey(path)
        return os.path.join(self.folder, HIVES[parts[0].lower()]), parts[1:]

    def _open(self, path, write=False):
        file, parts = self._place(path)
        hive = hivex.Hivex(file, write=write)
        if parts and parts[0].lower() == "currentcontrolset" and file.endswith("SYSTEM"):
            number = 1
            select = hive.node_get_child(hive.root(), "Select")
            if select is not None:
                number = hive.value_dword(hive.node_get_value(select, "Current"))
            parts[0] = f"ControlSet{number:03}"
        return file, hive, parts

    @staticmethod
    def _walk(hive, parts, make=False):
        node = hive.root()
        for part in parts:
            below = hive.node_get_child(node, part)
            if below is None:
                if not make:
                    raise NoKey("\\".join(parts))
                below = hive.node_add_child(node, part)
            node = below
        return node

    @staticmethod
    def _commit(file, hive):
        new = file + ".new"
        hive.commit(new)
        with open(new, "rb") as written:
            os.fsync(written.fileno())
        os.replace(new, file)

    def exists(self, path):
        with self.lock:
            try:
                _, hive, parts = self._open(path)
                self._walk(hive, parts)
                return True
            except NoKey:
                return False

    def values(self, path):
        """{name: (type, contents)}."""
        with self.lock:
            _, hive, parts = self._open(path)
            found = {}
            for value in hive.node_values(self._walk(hive, parts)):
                kind, octets = hive.value_value(value)
                found[hive.value_key(value)] = (kind, decoded(kind, octets))
            return found

    def get(self, path, name, default=None):
        try:
            values = self.values(path)
        except NoKey:
            return default
        return next((value for key, (_, value) in values.items() if key.lower() == name.lower()), default)

    def children(self, path):
        with self.lock:
            _, hive, parts = self._open(path)
            return [hive.node_name(each) for each in hive.node_children(self._walk(hive, parts))]

    def add(self, path):
        with self.lock:
            file, hive, parts = self._open(path, True)
            self._walk(hive, parts, True)
            self._commit(file, hive)

    def set(self, path, name, kind, value, make=True):
        """`kind` is PowerShell's name of the type, or the number."""
        kind = TYPES[kind] if isinstance(kind, str) else kind
        with self.lock:
            file, hive, parts = self._open(path, True)
            node = self._walk(hive, parts, make)
            hive.node_set_value(node, {"key": name, "t": kind, "value": encoded(kind, value)})
            self._commit(file, hive)

    def remove(self, path, name):
        with self.lock:
            file, hive, parts = self._open(path, True)
            node = self._walk(hive, parts)
            kept, gone = [], False
            for value in hive.node_values(node):
                kind, octets = hive.value_value(value)
                if hive.value_key(value).lower() == name.lower():
                    gone = True
                else:
                    kept.append({"key": hive.value_key(value), "t": kind, "value": octets})
            if not gone:
                raise NoKey(name)
            hive.node_set_values(node, kept)
            self._commit(file, hive)

    def delete(self, path):
        with self.lock:
            file, hive, parts = self._open(path, True)
            if not parts:
                raise NoKey(path)
            hive.node_delete_child(self._walk(hive, parts))
            self._commit(file, hive)


def fill(registry):
    """What a generalized Windows has in its hives, as far as somebody looks."""
    version = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion"
    registry.set(STATE, "ImageState", "String", "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE")
    for name, kind, value in [
        ("ProductName", "String", "Kiln lab (Linux, no Windows)"), ("EditionID", "String", "Lab"),
        ("InstallationType", "String", "Lab"), ("CurrentBuildNumber", "String", "0"), ("CurrentBuild", "String", "0"),
        ("UBR", "DWord", 0),
    ]:  # fmt: skip
        registry.set(version, name, kind, value)
    registry.set(WINLOGON, "Shell", "String", "explorer.exe")
    registry.set(LICENSING, "SkipRearm", "DWord", 0)
    # The lab's own: a Windows keeps the count in an encrypted store.
    registry.set(LICENSING, "LabRearmsLeft", "DWord", 5)
    registry.add(PROFILES)
    registry.add(TASKS)
    registry.add(LOGON_UI)
    registry.add(r"SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System")
    registry.add(r"SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing")
    registry.add(r"SAM\SAM")
    for name in ("Current", "Default", "LastKnownGood"):
        registry.set(r"SYSTEM\Select", name, "DWord", 1)
    for service, start in [("storahci", 0), ("viostor", 0), ("vioscsi", 0), ("netkvm", 3), ("WinRM", 3)]:
        registry.set(rf"SYSTEM\ControlSet001\Services\{service}", "Start", "DWord", start)
    registry.add(r"SYSTEM\ControlSet001\Control\Session Manager")
    registry.set(PREFETCH, "BootId", "DWord", 0)
