# Ends everything in the session of the step with nonce $1: asks first, then kills. What removes the step follows in
# the same shell, so that nothing of the step is alive then, also when nobody waits for the answer any more.
end_session() {
  for base in "$HOME" /var/tmp /tmp; do
    d=$base/.kiln-step-$1
    [ -d "$d" ] && break
  done
  [ "$(cat "$d/boot")" = "$(cat /proc/sys/kernel/random/boot_id)" ] || return
  # Not begun: then it never will be.
  mkdir "$d/started" && return
  tries=0
  while [ ! -e "$d/sid" ] && [ ! -e "$d/exit" ] && [ "$tries" -lt 10 ]; do
    tries=$((tries + 1))
    # Begun a moment ago: the runner is about to write this.
    sleep 0.1 || sleep 1
  done
  read -r sid < "$d/sid" || return
  send TERM
  tries=0
  while [ -n "$(members)" ] && [ "$tries" -lt 10 ]; do
    tries=$((tries + 1))
    # Time to end in good order; there is no event for the end of somebody else's processes.
    sleep 0.1 || sleep 1
  done
  send KILL
}

# proc(5): after the command's name in brackets come state, parent, group, session.
members() {
  for stat in /proc/[0-9]*/stat; do
    read -r line < "$stat" || continue
    set -- ${line##*) }
    if [ "$4" = "$sid" ] && [ "$1" != Z ]; then echo "${line%% *}"; fi
  done
}
send() {
  pids=$(members)
  [ -z "$pids" ] || kill "-$1" $pids || sudo -n kill "-$1" $pids </dev/null
}
end_session "$1" 2>/dev/null
