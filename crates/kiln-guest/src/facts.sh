# What is in this guest, as name=value lines after the marker $1. The rest of the arguments are directories that a
# script may be put into, best first. Reads nothing, writes only a probe file that it removes.
marker=$1
shift
echo "$marker"
say() { printf '%s=%s\n' "$1" "$2"; }

say boot_id "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
if [ -r /etc/os-release ]; then
  ( . /etc/os-release; say os_name "$PRETTY_NAME" )
fi

if [ "$(id -u)" = 0 ]; then say sudo root
elif ! command -v sudo >/dev/null; then say sudo absent
elif sudo -n true </dev/null >/dev/null 2>&1; then say sudo passwordless
else say sudo refused
fi

for dir in "$@"; do
  case $dir in '~'*) dir=$HOME${dir#'~'} ;; esac
  if lets_run "$dir"; then say script_dir "$dir"; break; fi
done
