# Makes a guest that was kept, and goes on now, one of its own: clock, randomness, keys. Runs as root.
#
#   $1 marker   $2 seconds since 1970   $3 the account   $4 its new public key   $5 the old one, without its comment
#   $6 the new host key, public
#
# Standard input: a line of fresh randomness in hexadecimal, then the new host key in OpenSSH's private form.
# Answers "MARKER renewed HOSTKEY BOOT" on standard output, HOSTKEY being "new", or "kept" where the SSH server is not
# OpenSSH, and BOOT the boot's id; or "MARKER failed WHAT".
LC_ALL=C
export LC_ALL
marker=$1 now=$2 user=$3 key=$4 old=$5 public=$6
fail() { printf '%s failed %s\n' "$marker" "$1"; exit 0; }
umask 077
IFS= read -r fresh
host=$(cat)
IFS= read -r boot < /proc/sys/kernel/random/boot_id || fail "the boot's id could not be read"

date -u -s "@$now" > /dev/null 2>&1 || fail "the clock could not be set"

# What is written is mixed in; the generator itself takes it up at once only when told so (RNDRESEEDCRNG, random(4)).
if command -v perl > /dev/null; then
  printf '%s' "$fresh" | perl -e 'open(my $r, "+<", "/dev/urandom") or exit 1; my $b = <STDIN>; syswrite($r, $b) or exit 1; ioctl($r, 0x5207, 0) or exit 1' ||
    fail "the kernel's randomness could not be renewed (perl)"
elif command -v python3 > /dev/null; then
  printf '%s' "$fresh" | python3 -c 'import fcntl, os, sys
r = os.open("/dev/urandom", os.O_RDWR)
os.write(r, sys.stdin.buffer.read())
fcntl.ioctl(r, 0x5207, 0)' || fail "the kernel's randomness could not be renewed (python3)"
else
  fail "nothing here can renew the kernel's randomness"
fi

home=$(awk -F: -v u="$user" '$1 == u { print $6 }' /etc/passwd)
keys=$home/.ssh/authorized_keys
[ -f "$keys" ] || fail "there is no $keys"
# Written where it is, so that it stays whose it is. Without it nobody gets in, and the machine is given up.
others=$(grep -vF -e "$old" "$keys")
printf '%s\n' ${others:+"$others"} "$key" > "$keys" || fail "$keys could not be written"

path=/etc/ssh/ssh_host_ed25519_key
[ -f "$path" ] && command -v sshd > /dev/null || { printf '%s renewed kept %s\n' "$marker" "$boot"; exit 0; }
printf '%s\n' "$host" > "$path" && printf '%s\n' "$public" > "$path.pub" || fail "the host key could not be replaced"
# The server that listens reads its keys again; one that is started for each connection does so by itself.
listener='' program=''
if [ -r /run/sshd.pid ]; then read -r listener < /run/sshd.pid; fi
if [ -n "$listener" ] && [ -r "/proc/$listener/comm" ]; then read -r program < "/proc/$listener/comm"; fi
if [ "$program" = sshd ]; then
  kill -HUP "$listener" || fail "the SSH server could not be told of its new key"
elif [ -d /run/systemd/system ]; then
  for unit in ssh sshd; do
    if systemctl is-active -q "$unit.service"; then systemctl reload "$unit.service" > /dev/null 2>&1; fi
  done
fi
printf '%s renewed new %s\n' "$marker" "$boot"
