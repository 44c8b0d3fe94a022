"""Loads the drivers that a build's machine can need, finds the partition of c:\\ by its label, mounts it.

There is no udev: see scripts/lab-guest.
"""

import subprocess
import sys
import time

DRIVERS = "fuse e1000e virtio_net xhci_pci usb_storage sr_mod isofs vfat nls_cp437 nls_ascii nls_utf8 button evdev"

for driver in DRIVERS.split():
    subprocess.run(["modprobe", "-q", driver], check=False)
for _ in range(50):
    found = subprocess.run(["blkid", "-L", "lab"], capture_output=True, text=True, check=False).stdout.strip()
    if found:
        break
    time.sleep(0.2)
else:
    sys.exit("no partition is labelled lab")
# ntfs-3g's own: mount(8) would look for it all the same.
sys.exit(subprocess.run(["ntfs-3g", "-o", "noatime,big_writes,windows_names", found, "/lab/c"], check=False).returncode)
