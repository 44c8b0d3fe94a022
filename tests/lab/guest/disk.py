"""The disk below c:\\: its partitions, and growing the last of them with its NTFS.

ntfs-3g cannot grow a volume in use, so c:\\ is away for some seconds while it grows; a file that somebody has open
there makes it fail, and the caller is told.
"""

import json
import os
import subprocess

ROOT = "/lab/c"
MIB = 1 << 20


class Failed(Exception):
    """What a tool said."""


def tool(*words):
    ran = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if ran.returncode:
        raise Failed(f"{words[0]}: {(ran.stderr or ran.stdout).strip()[-200:]}")
    return ran.stdout


def place():
    """(the disk's name in /dev, the number of c:'s partition)."""
    with open("/proc/mounts", encoding="ascii") as file:
        name = next(os.path.basename(line.split()[0]) for line in file if line.split()[1] == ROOT)
    folder = os.path.realpath(f"/sys/class/block/{name}")
    with open(f"{folder}/partition", encoding="ascii") as file:
        return os.path.basename(os.path.dirname(folder)), int(file.read())


def look():
    disk, mine = place()
    table = json.loads(tool("sfdisk", "-J", f"/dev/{disk}"))["partitiontable"]
    with open(f"/sys/class/block/{disk}/size", encoding="ascii") as file:
        # The last 33 sectors are the second table's, wherever it lies now.
        end = (int(file.read()) - 33) * 512
    parts = [
        {"number": int(each["node"][len(f"/dev/{disk}") :].lstrip("p")), "offset": each["start"] * 512, "size": each["size"] * 512, "type": each["type"]}
        for each in table["partitions"]
    ]  # fmt: skip
    own = next(each for each in parts if each["number"] == mine)
    behind = min((each["offset"] for each in parts if each["offset"] > own["offset"]), default=end)
    last = max(each["offset"] + each["size"] for each in parts)
    return {"mine": mine, "partitions": parts, "most": (behind - own["offset"]) // MIB * MIB, "free": max(0, end - last)}


def grow(size):
    disk, mine = place()
    seen = look()
    own = next(each for each in seen["partitions"] if each["number"] == mine)
    if size > seen["most"] or size < own["size"]:
        raise Failed("Size Not Supported")
    device = f"/dev/{disk}{'p' if disk[-1].isdigit() else ''}{mine}"
    first = own["offset"] // 512
    os.sync()
    # By systemd, so that ntfs-3g does not end with who asked; alone, as the start program goes on.
    alone = ("systemctl", "--job-mode=ignore-dependencies")
    tool(*alone, "stop", "lab-disk.service")
    if os.path.ismount(ROOT):
        tool(*alone, "start", "lab-disk.service")
        raise Failed("The volume is in use.")
    try:
        tool("sgdisk", "-e", f"/dev/{disk}")
        tool("sgdisk", "-d", str(mine), "-n", f"{mine}:{first}:{first + size // 512 - 1}", "-t", f"{mine}:0700", f"/dev/{disk}")
        tool("partx", "-u", "-n", str(mine), f"/dev/{disk}")
        tool("ntfsresize", "-f", "-f", "-P", device)
        # ntfsresize asks for a check of the volume; it has made one itself.
        tool("ntfsfix", "-d", device)
    finally:
        tool(*alone, "start", "lab-disk.service")
