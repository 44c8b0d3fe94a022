# Puts a guest to rest before it is kept: what was written is on its disk, and no timer waits for its moment.
#
#   $1 marker
#
# Answers "MARKER settled RESEED" on standard output: the program that can renew the kernel's randomness later ("perl",
# "python3"), or "none".
LC_ALL=C
export LC_ALL
# The first time in a boot. The mark says that this account can become root; asking sudo each time would lengthen every
# pause.
if [ ! -e /run/kiln-at-rest ]; then
  up=''
  if [ "$(id -u)" != 0 ]; then
    if command -v sudo > /dev/null && sudo -n true < /dev/null > /dev/null 2>&1; then up='sudo -n'; else up=none; fi
  fi
  if [ "$up" != none ]; then
    # A clock that jumps fires timers: apt's take the package lock from the next step. They are back with the next boot.
    if [ -d /run/systemd/system ]; then $up systemctl stop '*.timer' < /dev/null > /dev/null 2>&1; fi
    $up sh -c ': > /run/kiln-at-rest' < /dev/null > /dev/null 2>&1
  fi
fi
reseed=none
if [ -e /run/kiln-at-rest ]; then
  for each in perl python3; do
    if command -v "$each" > /dev/null; then reseed=$each; break; fi
  done
fi
sync
printf '%s settled %s\n' "$1" "$reseed"
