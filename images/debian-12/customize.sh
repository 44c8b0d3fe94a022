#!/bin/bash
# Runs on the unpacked tree, before it becomes a file system.
# The Azure rows come from Microsoft's "Prepare Linux for imaging in Azure".
set -euo pipefail
root=$1
here=$2
# shellcheck source=images/debian-12/recipe.env
. "$here/recipe.env"
# Microsoft's list also has rootdelay=300. Debian's initramfs does not wait *up to*
# that time but sleeps all of it at every boot; without it, it waits for the root
# device itself (30 s), and the Hyper-V drivers are loaded first. So it stays out.
cmdline="root=LABEL=$ROOT_LABEL ro console=tty1 console=ttyS0,115200 earlyprintk=ttyS0,115200 net.ifnames=0"

# Storage and network of Hyper-V must be there before the root file system is.
printf '%s\n' hv_vmbus hv_storvsc hv_netvsc hv_utils >> "$root/etc/initramfs-tools/modules"

cat > "$root/etc/fstab" <<FSTAB
LABEL=$ROOT_LABEL / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1
LABEL=ESP /boot/efi vfat defaults,umask=0077 0 2
FSTAB
mkdir -p "$root/boot/efi"
echo debian > "$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n127.0.1.1\tdebian\n::1\tlocalhost ip6-localhost ip6-loopback\n' > "$root/etc/hosts"
printf 'auto lo\niface lo inet loopback\nsource /etc/network/interfaces.d/*\n' > "$root/etc/network/interfaces"

# cloud-init: the datasource list stays whole (Azure is in it); a build chooses
# NoCloud by the machine's serial number. cloud-init provisions, waagent assists.
cat > "$root/etc/cloud/cloud.cfg.d/91-azure.cfg" <<'CFG'
datasource:
  Azure:
    apply_network_config: false
locale: C.UTF-8
manage_etc_hosts: localhost
CFG
sed -i -E \
  -e 's/^#? *Provisioning\.Agent=.*/Provisioning.Agent=cloud-init/' \
  -e 's/^#? *ResourceDisk\.Format=.*/ResourceDisk.Format=n/' \
  -e 's/^#? *ResourceDisk\.EnableSwap=.*/ResourceDisk.EnableSwap=n/' \
  "$root/etc/waagent.conf"

sed -i -E \
  -e "s|^GRUB_CMDLINE_LINUX=.*|GRUB_CMDLINE_LINUX=\"${cmdline#root=LABEL=* ro }\"|" \
  -e 's/^GRUB_CMDLINE_LINUX_DEFAULT=.*/GRUB_CMDLINE_LINUX_DEFAULT=""/' \
  -e 's/^GRUB_TIMEOUT=.*/GRUB_TIMEOUT=0/' \
  "$root/etc/default/grub"
# update-grub needs a block device, which there is none of yet. Debian's links to
# the newest kernel do until the first kernel upgrade writes a full grub.cfg.
mkdir -p "$root/boot/grub"
cat > "$root/boot/grub/grub.cfg" <<CFG
search --no-floppy --label --set=root $ROOT_LABEL
serial --unit=0 --speed=115200
terminal_output console serial
linux /vmlinuz $cmdline
initrd /initrd.img
boot
CFG
cat > "$root/boot/grub/esp.cfg" <<CFG
search --no-floppy --label --set=root $ROOT_LABEL
set prefix=(\$root)/boot/grub
configfile \$prefix/grub.cfg
CFG
mkdir -p "$root/boot/grub/i386-pc"
cp "$root/usr/lib/grub/i386-pc/boot.img" "$root/boot/grub/i386-pc/"
chroot "$root" grub-mkimage -O i386-pc -o /boot/grub/i386-pc/core.img -p /boot/grub -c /boot/grub/esp.cfg \
  biosdisk part_gpt ext2 search search_label configfile normal linux serial terminal echo test

chroot "$root" update-initramfs -c -k all > /dev/null

# What belongs to one machine alone, or to the moment of the build.
rm -f "$root"/etc/ssh/ssh_host_*_key* "$root"/var/lib/systemd/random-seed "$root"/var/lib/systemd/credential.secret \
  "$root"/var/lib/dbus/machine-id "$root"/var/cache/ldconfig/aux-cache "$root"/var/cache/apt/*.bin
rm -rf "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/etc/*- "$root"/var/lib/apt/lists/*
find "$root/var/log" -type f -delete
# mmdebstrap brings these from the machine it runs on, and its own settings of apt and dpkg.
rm -f "$root"/etc/resolv.conf "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
chmod 644 "$root/etc/hostname" "$root/etc/hosts"
: > "$root/etc/machine-id"
# The image asks the archive it was made from, and needs no more than one file for that.
rm -f "$root"/etc/apt/sources.list.d/*
"$here/sources.sh" "$SUITE" > "$root/etc/apt/sources.list"
