# Runs one step in a session of its own and keeps its end, whoever is listening. $1: the folder of the step.
#
#   call    what to run: sourced as the last act of the child    out, err   what it printed
#   alive   a pipe that this process holds open while it lives   sid        written when it is, the session's id
#   exit    code, bytes of out, bytes of err                     stopped    the system went down before the step ended
d=$1
read -r boot < /proc/sys/kernel/random/boot_id
read -r meant < "$d/boot"
# Meant for a boot that was over before the step began.
[ "$boot" = "$meant" ] || exit 0
# Whoever makes this directory begins the step; nobody else does.
mkdir "$d/started" || exit 0
exec 6>>"$d/out" 7>>"$d/err" 9<>"$d/alive"

# Into room that was taken beforehand, then renamed: a full disk does not lose the end of a step.
keep() {
  [ -e "$d/$1.room" ] || { mkdir -p "$d" && printf '%-60s\n' unused > "$d/$1.room"; }
  printf '%-60s\n' "$2" 1<>"$d/$1.room" && mv -f "$d/$1.room" "$d/$1"
}

# Asked to end: was it the system that goes down? The mark is written first and taken back when it was not, because
# there may be no time for the question.
asked_to_end() {
  trap '' TERM HUP
  : > "$d/stopped"
  sync
  case $(going_down) in
    no|later) rm -f "$d/stopped" ;;
  esac
}

# A second process takes the mark, because this one hears signals only when its child has ended, and a child may
# ignore them until everybody is killed. It waits for this one's end by a reader of the pipe, which must outlive the
# first signal.
(
  exec 8<"$d/alive" 9>&- 6>&- 7>&-
  on_signal() { asked_to_end; trap on_signal TERM HUP; }
  trap on_signal TERM HUP
  ( trap '' TERM HUP; exec cat <&8 >/dev/null ) &
  reader=$!
  exec 8<&-
  while kill -0 "$reader" 2>/dev/null; do wait "$reader"; done
) &

read -r stat < /proc/$$/stat
set -- ${stat##*) }
keep sid "$4"

asked= swept=
trap asked=1 TERM HUP
( . "$d/call" ) </dev/null >&6 2>&7 6>&- 7>&- 9>&-
code=$?

case $code in
129|137|143)
  # SIGHUP, SIGKILL, SIGTERM: by the step's own doing, or because the system goes down? Then everybody gets that
  # signal at about the same time, we perhaps a moment later than the child.
  [ -n "$asked" ] || sleep 0.3 2>/dev/null || sleep 1
  ask=yes ;;
*)
  # It may have an answer of its own to that signal, and a code for it.
  ask=$asked ;;
esac
if [ "$code" != 0 ] && [ -n "$ask" ]; then
  case $asked$(going_down) in
    1|1now|now) : > "$d/stopped"; sync; exit 0 ;;
  esac
fi
if [ ! -e "$d/boot" ] || [ ! -e "$d/out" ] || [ ! -e "$d/err" ]; then
  # The step swept the directory that our folder lay in. What it printed is still open here; the folder comes back
  # whole or not at all.
  swept=$d
  d=$d.new
  mkdir -p -m 700 "$d" && cat /proc/$$/fd/6 > "$d/out" && cat /proc/$$/fd/7 > "$d/err" && echo "$boot" > "$d/boot"
fi
keep exit "$code $(wc -c < "$d/out") $(wc -c < "$d/err")"
if [ -n "$swept" ]; then rm -rf "$swept"; mv "$d" "$swept"; fi
