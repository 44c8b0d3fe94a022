# Whether a program put into directory $1 can be run there: not on a noexec mount, not on a read-only one.
lets_run() {
  probe=$1/.kiln-probe-$$
  ( printf '#!/bin/sh\nexit 0\n' > "$probe" && chmod 700 "$probe" && "$probe" ) </dev/null >/dev/null 2>&1
  set -- $?
  rm -f "$probe" 2>/dev/null
  return "$1"
}
