# Attends a detached step: says where it stands, and hands over what it printed from the offsets on.
#
#   $1 marker   $2 the step's folder   $3 offset in out   $4 offset in err   $5 "final" after the runner's end was seen
#
# First line of standard output: "MARKER STATE BOOT-ID CODE OUT-BYTES ERR-BYTES GOING-DOWN", with - for what is not
# known; first line of standard error: "MARKER". What comes before those lines is the login shell's. After them come
# bytes of out on standard output and of err on standard error, and nothing else. While the step runs, this blocks
# and streams; exit code 10 says that the runner's end was seen.
marker=$1 d=$2 o=$3 e=$4 final=$5
# Standard error belongs to the step; what our own programs complain about has no place there.
exec 5>&2 2>/dev/null
read -r boot < /proc/sys/kernel/random/boot_id
so=- se=- code=-

sizes() { so=$(wc -c < "$d/out"); se=$(wc -c < "$d/err"); so=$((so)) se=$((se)); }
say() {
  printf '%s\n' "$marker" >&5
  printf '%s %s %s %s %s %s %s\n' "$marker" "$1" "$boot" "$code" "$so" "$se" "${2:--}"
}
# Exactly the bytes up to the sizes said: a daemon that the step left behind may go on writing.
rest() {
  [ "$so" -gt "$o" ] && tail -c +$((o + 1)) "$d/out" | head -c $((so - o))
  [ "$se" -gt "$e" ] && tail -c +$((e + 1)) "$d/err" | head -c $((se - e)) >&5
  exit 0
}

runner_lives() {
  # Nothing but the runner has this path in its command line.
  printf '%s\n' "$d/run" | grep -qaFf - /proc/[0-9]*/cmdline
}

tries=0 swept=yes
while :; do
  began_in=
  { read -r began_in < "$d/boot"; } 2>/dev/null
  if [ -f "$d/exit" ]; then
    read -r code so se < "$d/exit"
    if [ -n "$se" ]; then say ended "$(going_down)"; rest; fi
    # A crash left the name and not the words.
    code=-
  fi
  if [ -z "$began_in" ]; then
    # The step swept our folder away: its runner, if it is still there, brings it back when the step ends. Or a crash
    # came before the folder was on the disk; then nobody does.
    if runner_lives; then swept=yes; sleep 0.2 || sleep 1; continue; fi
    # It may have ended between our two looks.
    if [ -n "$swept" ]; then swept=; continue; fi
    say gone
    exit 0
  fi
  if [ "$boot" != "$began_in" ]; then
    sizes
    if [ -e "$d/stopped" ]; then say rebooted orderly; else say rebooted abrupt; fi
    rest
  fi
  if [ -e "$d/stopped" ]; then say stopping; exit 0; fi
  if [ "$final" = final ]; then
    sizes
    if [ "$(going_down)" = now ]; then say stopping; exit 0; fi
    say lost
    rest
  fi
  [ -e "$d/sid" ] && [ -p "$d/alive" ] && break
  # The runner opens the pipe and then writes its session's id; sudo may need a moment before. There is no event to
  # wait for before the pipe has a writer.
  tries=$((tries + 1))
  if [ "$tries" -gt 100 ]; then
    state=lost
    [ -d "$d/started" ] || state=unstarted
    say $state "$(head -c 300 "$d/log" | tr '\n' ' ')"
    exit 0
  fi
  sleep 0.1 || sleep 1
done

say running
# Opening a pipe that has no writer would block for ever; with ourselves as a writer for a moment it does not.
exec 3<>"$d/alive" 4<"$d/alive"
exec 3>&-
tail -c +$((o + 1)) -f "$d/out" 4<&- 5>&- &
tail_out=$!
tail -c +$((e + 1)) -f "$d/err" >&5 4<&- 5>&- &
tail_err=$!
# Ends when the last writer is gone: the event that the step ended, however it did.
ended=0
cat <&4 >/dev/null 5>&- && ended=10
kill "$tail_out" "$tail_err" 2>/dev/null
wait
exit $ended
