#!/bin/bash
# Puts GRUB's BIOS half on a disk without grub-install: boot.img into sector 0
# (its partition table kept), core.img into the BIOS boot partition.
#   biosboot.sh DIR_WITH_boot.img_AND_core.img DISK FIRST_SECTOR
set -euo pipefail
dir=$1
disk=$2
lba=$3
le() { # VALUE BYTES: little-endian
  local v=$1 i
  for ((i = 0; i < $2; i++)); do printf '%b' "\\x$(printf '%02x' $((v & 255)))"; v=$((v >> 8)); done
}
at() { dd of="$disk" bs=1 seek="$1" conv=notrunc status=none; }

head -c 440 "$dir/boot.img" | at 0
le "$lba" 8 | at 92
printf '\x90\x90' | at 102
sectors=$((($(stat -c %s "$dir/core.img") + 511) / 512))
dd if="$dir/core.img" of="$disk" bs=512 seek="$lba" conv=notrunc status=none
# The first sector's block list: where the rest lies, and how long it is.
le $((lba + 1)) 8 | at $((lba * 512 + 500))
le $((sectors - 1)) 2 | at $((lba * 512 + 508))
