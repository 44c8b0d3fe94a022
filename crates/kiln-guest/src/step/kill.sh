# Ends everything in the session of the step with nonce $1: asks first, then kills.
for base in "$HOME" /var/tmp /tmp; do
  d=$base/.kiln-step-$1
  [ -d "$d" ] && break
done
[ "$(cat "$d/boot")" = "$(cat /proc/sys/kernel/random/boot_id)" ] || exit 0
# Not begun: then it never will be.
mkdir "$d/started" 2>/dev/null && exit 0
tries=0
while [ ! -e "$d/sid" ] && [ ! -e "$d/exit" ] && [ "$tries" -lt 10 ]; do
  tries=$((tries + 1))
  # Begun a moment ago: the runner is about to write this.
  sleep 0.1 2>/dev/null || sleep 1
done
read -r sid < "$d/sid" || exit 0

# proc(5): after the command's name in brackets come state, parent, group, session.
members() {
  for stat in /proc/[0-9]*/stat; do
    read -r line < "$stat" || continue
    set -- ${line##*) }
    if [ "$4" = "$sid" ] && [ "$1" != Z ]; then echo "${line%% *}"; fi
  done 2>/dev/null
}
send() {
  for pid in $(members); do
    kill "-$1" "$pid" 2>/dev/null || sudo -n kill "-$1" "$pid" </dev/null 2>/dev/null
  done
}
send TERM
tries=0
while [ -n "$(members)" ] && [ "$tries" -lt 10 ]; do
  tries=$((tries + 1))
  # Time to end in good order; there is no event for the end of somebody else's processes.
  sleep 0.1 2>/dev/null || sleep 1
done
send KILL
