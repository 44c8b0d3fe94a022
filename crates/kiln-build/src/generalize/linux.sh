# The last that happens in a guest: what belongs to this build goes, the account
# included. Runs as root over a connection that is already open: sshd keeps it
# although account and host keys are gone. waagent removes none of what is here,
# or only where Azure provisioned the machine.
#   $1 the build's account
set -u
user=$1
failed=
try() { "$@" || failed="$failed [$*]"; }
# Files are named in a list and handed over by hundreds: an emulated guest spends more on starting a program for each
# than on its work.
by_hundreds() { # COMMAND LIST
  command=$1 list=$2
  set --
  while IFS= read -r file; do
    set -- "$@" "$file"
    if [ $# = 100 ]; then "$command" "$@"; set --; fi
  done < "$list"
  [ $# = 0 ] || "$command" "$@"
}
overwrite() {
  wc -c "$@" > /run/kiln-sizes 2> /dev/null
  for file in "$@"; do
    read -r size rest <&3 || size=0
    [ "$size" = 0 ] || dd if=/dev/zero of="$file" bs=4096 count=$(((size + 4095) / 4096)) conv=notrunc 2> /dev/null
  done 3< /run/kiln-sizes
  rm -f /run/kiln-sizes
}
delete() { rm -f "$@"; }
# Overwritten before they go: a freed block keeps its content until it is trimmed. In cloud-init's marks (sem) is nothing
# of anybody's.
wipe() {
  for file in "$@"; do
    case $file in /var/lib/cloud/sem/* | /var/lib/cloud/*/sem/*) continue ;; esac
    if [ -f "$file" ] && [ ! -L "$file" ]; then printf '%s\n' "$file" >> /run/kiln-wiped; fi
  done
}
# What was overwritten is on the disk before its blocks are free.
wiped() {
  [ -f /run/kiln-wiped ] || return 0
  by_hundreds overwrite /run/kiln-wiped
  sync
  by_hundreds delete /run/kiln-wiped
  rm -f /run/kiln-wiped
}

# Keys and what cloud-init kept of the user data.
home=$(awk -F: -v u="$user" '$1 == u { print $6 }' /etc/passwd)
for dir in /var/lib/cloud "$home"; do
  if [ -n "$dir" ] && [ "$dir" != / ] && [ -d "$dir" ]; then
    find "$dir" -xdev -type f > /run/kiln-wipe
    by_hundreds wipe /run/kiln-wipe
    rm -f /run/kiln-wipe
  fi
done
wipe /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub /etc/ssh/ssh_host_*-cert.pub
wipe /var/log/cloud-init.log /var/log/cloud-init-output.log
wiped
try rm -rf /var/lib/cloud /var/tmp/cloud-init
# cloud-init made it for keys that were not given.
[ -s /root/.ssh/authorized_keys ] || rm -f /root/.ssh/authorized_keys
rm -f /etc/sudoers.d/90-cloud-init-users /var/lib/cloud-init-*

# The account: with its group, home, mail, crontab and sub-ids.
if [ -n "$home" ]; then
  if command -v userdel > /dev/null 2>&1; then
    userdel -f -r "$user" > /run/kiln-userdel 2>&1 || true
  elif command -v deluser > /dev/null 2>&1; then
    deluser --remove-home "$user" > /run/kiln-userdel 2>&1 || true
  fi
  [ "$home" = / ] || rm -rf "$home"
  groupdel "$user" > /dev/null 2>&1 || true
  rm -f "/var/mail/$user" "/var/spool/mail/$user" "/var/spool/cron/$user" "/var/spool/cron/crontabs/$user" \
    "/var/lib/systemd/linger/$user"
  files="/etc/passwd /etc/shadow /etc/group /etc/gshadow /etc/subuid /etc/subgid"
  for file in $(grep -l "^$user:" $files 2> /dev/null); do failed="$failed [$user is still in $file]"; done
  # The tools' backups still name it.
  wipe $(grep -l "^$user:" $(printf '%s- ' $files) 2> /dev/null)
  wiped
fi

# What cloud-init and the network of this build left behind.
for file in /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init* \
  /etc/systemd/network/10-cloud-init-*.network /etc/NetworkManager/system-connections/cloud-init-* \
  /etc/udev/rules.d/70-persistent-net.rules /etc/udev/rules.d/75-persistent-net-generator.rules; do
  if [ -e "$file" ]; then rm -f "$file"; fi
done
for file in /etc/sysconfig/network-scripts/ifcfg-*; do
  if [ -f "$file" ] && grep -qi 'created by cloud-init' "$file"; then rm -f "$file"; fi
done
rm -f /var/lib/dhcp/*.leases /var/lib/dhclient/*.lease* /var/lib/NetworkManager/*.lease \
  /var/lib/NetworkManager/timestamps /var/lib/NetworkManager/seen-bssids /run/systemd/netif/leases/*

# This machine's identity.
if [ -e /etc/machine-id ]; then : > /etc/machine-id; fi
[ -f /var/lib/dbus/machine-id ] && [ ! -L /var/lib/dbus/machine-id ] && rm -f /var/lib/dbus/machine-id
# Its end saves a seed, at shutdown again: so it ends now.
if command -v systemctl > /dev/null 2>&1; then systemctl stop systemd-random-seed.service > /dev/null 2>&1; fi
rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -f /root/.bash_history

# The journal keeps the keys' fingerprints and the build's logins: from here on it
# stays in memory.
if command -v journalctl > /dev/null 2>&1; then journalctl --relinquish-var > /dev/null 2>&1 || true; fi
if [ -d /var/log/journal ]; then
  find /var/log/journal -type f > /run/kiln-wipe
  by_hundreds delete /run/kiln-wipe
  rm -f /run/kiln-wipe
  find /var/log/journal -mindepth 1 -type d -empty -delete
fi
for file in /var/log/wtmp /var/log/btmp /var/log/lastlog; do [ -f "$file" ] && : > "$file"; done

sync
# Free blocks become holes in the image: smaller, and without what was deleted.
fstrim -a > /dev/null 2>&1 || fstrim / > /dev/null 2>&1 || echo "kiln: no trim: $(uname -r) or its file system does not do it"
sync
if [ -n "$failed" ]; then
  echo "kiln: clean-up failed:$failed" >&2
  exit 1
fi
echo "kiln: clean"
