#!/bin/bash
# Makes the Debian 12 base image from packages alone: no download of a finished
# image, no loop device, no mount. The result boots by BIOS and by UEFI.
#
#   build.sh OUT.qcow2
#
# The same package versions and the same SOURCE_DATE_EPOCH give the same bytes.
# Needs root (or a user namespace with sub-uids): packages set owners and modes.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUT.qcow2}
# shellcheck source=images/debian-12/recipe.env
. "$here/recipe.env"
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$RECIPE_EPOCH} TZ=UTC LC_ALL=C.UTF-8
umask 022

if [ "$(id -u)" != 0 ]; then
  exec unshare --user --map-root-user --map-auto -- "$0" "$@" ||
    { echo "build.sh: needs root, or sub-uids for $(id -un) in /etc/subuid" >&2; exit 1; }
fi

outdir=$(cd "$(dirname "$out")" && pwd)
work=$(mktemp -d "$outdir/.base-XXXXXX")
trap 'rm -rf "$work"' EXIT
say() { printf '[%3ds] %s\n' "$SECONDS" "$*" >&2; }

say "installing packages (mmdebstrap, suite $SUITE)"
"$here/sources.sh" "$SUITE" > "$work/sources.list"
mmdebstrap --quiet --variant=apt --mode=root --architectures="$ARCH" \
  --include="$PACKAGES" \
  --aptopt='APT::Install-Recommends "false"' \
  --aptopt='Acquire::Languages "none"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --essential-hook='printf "%s\n" "grub-cloud-amd64 grub-pc/install_devices_empty boolean true" | chroot "$1" debconf-set-selections' \
  --customize-hook="'$here/customize.sh' \"\$1\" '$here'" \
  --customize-hook="chroot \"\$1\" dpkg-query -W -f='\${Package}\t\${Version}\n' > '$work/packages.tsv'" \
  "$SUITE" "$work/root.tar" "$work/sources.list"

say "unpacking the tree"
mkdir "$work/tree"
tar -C "$work/tree" --numeric-owner --xattrs --xattrs-include='*' -xpf "$work/root.tar"
rm "$work/root.tar"

say "root file system"
root_sectors=$((DISK_MIB * 2048 - ROOT_START - 2048))
root_kib=$((root_sectors / 2))
E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mke2fs -q -t ext4 -b 4096 -d "$work/tree" -L "$ROOT_LABEL" \
  -U "$ROOT_UUID" -E "hash_seed=$ROOT_UUID,lazy_itable_init=0,nodiscard" -m 1 "$work/root.ext4" "${root_kib}k" > /dev/null
# mke2fs copies the change time of each unpacked file: set it to the epoch.
"$here/settimes.sh" "$work/root.ext4" "$SOURCE_DATE_EPOCH"

say "boot partitions"
fat() { SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH mkfs.vfat --invariant -F 32 -n ESP -i "$ESP_SERIAL" "$@" > /dev/null; }
truncate -s "${ESP_MIB}M" "$work/esp.fat"
fat "$work/esp.fat"
mkdir -p "$work/esp/EFI/BOOT" "$work/esp/EFI/debian"
cp "$work/tree/usr/lib/shim/shimx64.efi.signed" "$work/esp/EFI/BOOT/BOOTX64.EFI"
cp "$work/tree/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed" "$work/esp/EFI/BOOT/grubx64.efi"
cp "$work/tree/boot/grub/esp.cfg" "$work/esp/EFI/debian/grub.cfg"
find "$work/esp" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mcopy -s -m -i "$work/esp.fat" "$work/esp/EFI" ::/

say "disk"
disk=$work/disk.raw
truncate -s "${DISK_MIB}M" "$disk"
sgdisk --clear --disk-guid="$DISK_GUID" \
  --new=14:2048:+3M --typecode=14:ef02 --partition-guid=14:"$BIOS_GUID" \
  --new=15:8192:+"${ESP_MIB}"M --typecode=15:ef00 --partition-guid=15:"$ESP_GUID" \
  --new=1:"$ROOT_START":+"$((root_sectors / 2048))"M --typecode=1:8304 --partition-guid=1:"$ROOT_GUID" \
  "$disk" > /dev/null
dd if="$work/esp.fat" of="$disk" bs=1M seek=4 conv=notrunc,sparse status=none
dd if="$work/root.ext4" of="$disk" bs=1M seek="$((ROOT_START / 2048))" conv=notrunc,sparse status=none
"$here/biosboot.sh" "$work/tree/boot/grub/i386-pc" "$disk" 2048

say "image"
qemu-img convert -q -f raw -O qcow2 -o compat=1.1,lazy_refcounts=off "$disk" "$work/image.qcow2"
digest=$(sha256sum "$work/image.qcow2" | cut -d' ' -f1)
recipe=$(cd "$here" && cat recipe.env build.sh customize.sh settimes.sh biosboot.sh sources.sh | sha256sum | cut -d' ' -f1)
{
  printf '{\n  "format": 1,\n  "name": "debian-12",\n  "arch": "%s",\n  "sourceDateEpoch": %s,\n' "$ARCH" "$SOURCE_DATE_EPOCH"
  printf '  "recipeSha256": "%s",\n  "imageSha256": "%s",\n  "packages": {\n' "$recipe" "$digest"
  sort "$work/packages.tsv" | sed -e 's/^\([^\t]*\)\t\(.*\)$/    "\1": "\2",/' -e '$ s/,$//'
  printf '  }\n}\n'
} > "$work/provenance.json"
sync "$work/image.qcow2" "$work/provenance.json"
mv "$work/provenance.json" "$out.provenance.json"
mv "$work/image.qcow2" "$out"
say "done: $out (sha256 $digest)"
