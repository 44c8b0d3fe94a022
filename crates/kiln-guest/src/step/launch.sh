# Starts a detached step, once.
#
#   $1 nonce of the step   $2 "root" or "user"   $3 extension and   $4 bytes of the script
#   $5 the boot it is meant for   $6 where the script lies in the guest already, or empty
#   $7… directories for the script, best first
#
# Standard input: the lines of the file "call", a line "end-of-call-NONCE", the lines of the file "run", a line
# "end-of-run-NONCE", then, where $6 is empty, the bytes of the script. Answers in lines
# "kiln-launch-NONCE WORD DETAIL" on standard output. May be run again with the same nonce when the answer got lost: the
# step is begun once.
#
# The step's folder lies where it survives a restart; the script lies where it may be executed.
nonce=$1 as=$2 extension=$3 size=$4 meant=$5 placed=$6
shift 6
answer() { printf 'kiln-launch-%s %s %s\n' "$nonce" "$1" "$2"; }
fail() { answer failed "$1"; exit 0; }
read -r boot < /proc/sys/kernel/random/boot_id

is_volatile() {
  # File system types tmpfs and ramfs: statfs(2).
  case $(stat -f -c %t "$1" 2>/dev/null) in 1021994|858458f6) return 0 ;; esac
  return 1
}

# The step is begun by whoever makes the directory "started", which the runner does first of all: a second runner of
# the same step does nothing. The answer comes from a process of its own, because a broken link would kill it.
begin() {
  (
    read -r script < "$1/script" && read -r boot < "$1/boot" &&
      answer script "$script" && answer folder "$1" && answer started "$boot"
  )
  # This shell is the leader of its session (the SSH server made it so), so setsid forks and returns at once. To
  # start the step by "&" would leave SIGINT ignored in everything it runs.
  exec </dev/null >>"$1/log" 2>&1
  if [ "$as" = root ] && [ "$(id -u)" != 0 ]; then
    exec setsid sudo -n /bin/sh "$1/run" "$1"
  fi
  exec setsid /bin/sh "$1/run" "$1"
}

# Was it put here before? A folder with this name is whole.
for base in "$HOME" /var/tmp /tmp; do
  folder=$base/.kiln-step-$nonce
  # A reset can leave names without their bytes.
  if [ -s "$folder/boot" ] && [ -s "$folder/script" ]; then begin "$folder"; fi
done

# In a later boot there is nothing to begin: the step may have been what ended the boot it was meant for, its folder
# lost with what was not yet on disk.
[ "$boot" = "$meant" ] || { answer otherboot "$boot"; exit 0; }

for program in setsid mkfifo tail head wc; do
  command -v "$program" >/dev/null || fail "the guest has no program $program"
done
if [ "$as" = root ] && [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { answer nosudo 'there is no sudo'; exit 0; }
  said=$(sudo -n true </dev/null 2>&1) || { answer nosudo "$said"; exit 0; }
fi

script_dir=
for dir in "$@"; do
  case $dir in '~'*) dir=$HOME${dir#'~'} ;; esac
  if lets_run "$dir"; then script_dir=$dir; break; fi
done
[ -n "$script_dir" ] || { answer nowhere "$*"; exit 0; }
# An earlier try, whose link broke, may still be at work: what is half-made has a name of its own.
script=$script_dir/script_${nonce}_$$.$extension

folder=
for base in "$HOME" /var/tmp /tmp; do
  [ -d "$base" ] && [ -w "$base" ] || continue
  if [ "$base" = /tmp ] || ! is_volatile "$base"; then folder=$base/.kiln-step-$nonce; break; fi
done
[ -n "$folder" ] || fail 'neither the home directory nor /var/tmp nor /tmp can be written to'

new=${folder}_$$
said=$(mkdir -m 700 "$new" 2>&1) || fail "$said"
give_up() { rm -rf "$new" "$script"; fail "$1"; }

take_lines() {
  while IFS= read -r line; do
    [ "$line" = "$1" ] && return 0
    printf '%s\n' "$line" || return 1
  done
  return 1
}
said=$(take_lines "end-of-call-$nonce" 2>&1 >"$new/call") || give_up "the call did not arrive whole $said"
said=$(take_lines "end-of-run-$nonce" 2>&1 >"$new/run") || give_up "the runner did not arrive whole $said"
if [ -z "$placed" ]; then
  said=$(cat 2>&1 >"$script") || give_up "$said"
else
  # One more name for it, or a copy where that cannot be: should this try be cut off, the next one finds it still there.
  said=$({ ln "$placed" "$script" 2>/dev/null || cp "$placed" "$script"; } 2>&1) || give_up "$said"
fi
[ "$(($(wc -c < "$script")))" = "$size" ] || give_up 'the script did not arrive whole'
said=$({ chmod 755 "$script" &&
  printf '%s\n' "$boot" > "$new/boot" &&
  printf '%s\n' "$script" > "$new/script" &&
  printf '%-60s\n' unused > "$new/exit.room" &&
  printf '%-60s\n' unused > "$new/sid.room" &&
  : > "$new/out" && : > "$new/err" && mkfifo -m 600 "$new/alive" ; } 2>&1) || give_up "$said"
# -T would tell a folder that is there from a target to move into, but is GNU's: look again instead.
if [ -d "$folder" ] || ! mv "$new" "$folder"; then rm -rf "$new" "$script"; fi
begin "$folder"
