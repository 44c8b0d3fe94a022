"""Fills an NTFS volume in a file, by ntfs-3g's own library: its programs make volumes and copy files, but no folders.

    volume.py VOLUME PLAN

PLAN has a line for each act: `folder PATH`, `many PATH COUNT` (empty files).
"""
import ctypes
import ctypes.util
import sys

lib = ctypes.CDLL(ctypes.util.find_library("ntfs-3g"))
P, INT = ctypes.c_void_p, ctypes.c_int
for name, result, arguments in [
    ("ntfs_mount", P, [ctypes.c_char_p, ctypes.c_ulong]),
    ("ntfs_umount", INT, [P, INT]),
    ("ntfs_pathname_to_inode", P, [P, P, ctypes.c_char_p]),
    ("ntfs_create", P, [P, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_uint8, ctypes.c_uint32]),
    ("ntfs_inode_close", INT, [P]),
]:
    function = getattr(lib, name)
    function.restype, function.argtypes = result, arguments

FOLDER, FILE = 0o040000, 0o100000


def need(value, what):
    if not value:
        sys.exit(f"volume.py: {what} failed")
    return value


volume = need(lib.ntfs_mount(sys.argv[1].encode(), 0), "opening")


def make(path, kind):
    above, _, name = path.rpartition("/")
    folder = need(lib.ntfs_pathname_to_inode(volume, None, (above or "/").encode()), above)
    letters = name.encode("utf-16-le")
    made = need(lib.ntfs_create(folder, 0, letters, len(letters) // 2, kind), path)
    lib.ntfs_inode_close(folder)
    return made


def close(inode):
    need(lib.ntfs_inode_close(inode) == 0, "closing")


with open(sys.argv[2], encoding="utf-8") as plan:
    for line in plan.read().splitlines():
        act, path, *rest = line.split("\t")
        if act == "folder":
            close(make(path, FOLDER))
        elif act == "many":
            for number in range(int(rest[0])):
                close(make(f"{path}/file {number:05}.dll", FILE))
        else:
            sys.exit(f"volume.py: {act}?")
need(lib.ntfs_umount(volume, 0) == 0, "closing the volume")
