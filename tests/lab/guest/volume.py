"""Makes the lab's c:\\ in a file, at making time: folders, programs, hives. Nothing is mounted.

    volume.py VOLUME SCRATCH [NAME.password]

VOLUME is a fresh NTFS (mkntfs). ntfs-3g's own library writes it; SCRATCH is a folder for what is copied in. With a file
that holds a password the system on it is installed (`installed.py`), and the digest of its listener's certificate goes
into NAME.sha256; else it is generalized.
"""

import ctypes
import ctypes.util
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import hives
import installed
import state

NAME = "LAB-NO-WINDOWS"
FOLDERS = [
    "Windows", "Windows/System32", "Windows/System32/config", "Windows/System32/config/systemprofile",
    "Windows/System32/Sysprep", "Windows/System32/Sysprep/Panther", "Windows/System32/Tasks", "Windows/Temp", "Windows/Panther",
    "Program Files", "Program Files (x86)", "ProgramData", "Users", "Users/Public", "lab",
]  # fmt: skip
PROGRAMS = ["shutdown", "logoff", "taskkill", "Sysprep/Sysprep"]
README = "This is the disk of Kiln's lab: a Linux that plays a Windows. No Windows is here.\r\n"
FOLDER, FILE, DATA = 0o040000, 0o100000, 0x80

lib = ctypes.CDLL(ctypes.util.find_library("ntfs-3g") or "libntfs-3g.so.89", use_errno=True)
P, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
for name, result, arguments in [
    ("ntfs_mount", P, [ctypes.c_char_p, ctypes.c_ulong]),
    ("ntfs_umount", INT, [P, INT]),
    ("ntfs_pathname_to_inode", P, [P, P, ctypes.c_char_p]),
    ("ntfs_create", P, [P, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_uint8, ctypes.c_uint32]),
    ("ntfs_inode_close", INT, [P]),
    ("ntfs_attr_open", P, [P, ctypes.c_uint32, P, ctypes.c_uint32]),
    ("ntfs_attr_pwrite", LONG, [P, LONG, LONG, ctypes.c_char_p]),
    ("ntfs_attr_close", None, [P]),
]:
    function = getattr(lib, name)
    function.restype, function.argtypes = result, arguments


def need(value, what):
    if not value:
        sys.exit(f"volume.py: {what} failed: {os.strerror(ctypes.get_errno())}")
    return value


def make(volume, path, kind, octets=b""):
    above, _, name = path.rpartition("/")
    folder = need(lib.ntfs_pathname_to_inode(volume, None, ("/" + above).encode()), above)
    letters = name.encode("utf-16-le")
    made = need(lib.ntfs_create(folder, 0, letters, len(letters) // 2, kind), path)
    # First: the file's own end writes to the folder's index too.
    need(lib.ntfs_inode_close(folder) == 0, above)
    if octets:
        data = need(lib.ntfs_attr_open(made, DATA, None, 0), path)
        written = lib.ntfs_attr_pwrite(data, 0, len(octets), octets)
        need(written == len(octets), f"{path} ({written} of {len(octets)})")
        lib.ntfs_attr_close(data)
    need(lib.ntfs_inode_close(made) == 0, path)


def main(image, scratch, password=None):
    os.makedirs(os.path.join(scratch, hives.CONFIG))
    registry = hives.Registry(scratch)
    registry.create()
    hives.fill(registry)
    folders, files = list(FOLDERS), {}
    if password is not None:
        installed.fill(registry)
        folders += installed.FOLDERS
        kept, digest = installed.state(installed.read_password(password), NAME, scratch)
        files = {state.PATH: kept, installed.ANSWERS: "followed long ago\r\n"}
        installed.write_digest(password, digest)
    volume = need(lib.ntfs_mount(image.encode(), 0), "opening the volume")
    for folder in folders:
        make(volume, folder, FOLDER)
    for name in sorted(os.listdir(registry.folder)):
        with open(os.path.join(registry.folder, name), "rb") as file:
            make(volume, f"{hives.CONFIG}/{name}", FILE, file.read())
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "exe.py"), "rb") as file:
        program = file.read()
    for name in PROGRAMS:
        make(volume, f"Windows/System32/{name}.exe", FILE, program)
    for path, text in files.items():
        make(volume, path, FILE, text.encode())
    make(volume, "README-lab.txt", FILE, README.encode())
    need(lib.ntfs_umount(volume, 0) == 0, "closing the volume")


main(*sys.argv[1:])
