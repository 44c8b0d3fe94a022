# Prints "now" when this system is shutting down, "later" when that is scheduled, "no" when it says that it is not,
# and nothing when it cannot be asked.
going_down() {
  if [ -d /run/systemd/system ]; then
    state=$(ask_systemd)
    case $state in
      stopping) echo now; return ;;
      running|degraded|starting|initializing|maintenance) ;;
      *) return ;;
    esac
    # shutdown(8) with a time, and other shutdowns that logind has in its book.
    if [ -e /run/systemd/shutdown/scheduled ]; then echo later; return; fi
    # logind may hold a shutdown back for a moment, before systemd hears of it, where programs hold inhibitor locks.
    set -- /run/systemd/inhibit/*
    if [ ! -e "$1" ]; then echo no; return; fi
    case $(busctl --timeout=5 get-property org.freedesktop.login1 /org/freedesktop/login1 \
        org.freedesktop.login1.Manager PreparingForShutdown 2>/dev/null) in
      *true*) echo now ;;
      *) echo no ;;
    esac
    return
  fi
  # sysvinit: "N 6" or "N 0" in the utmp.
  case $(runlevel 2>/dev/null) in
    *' 0'|*' 6') echo now ;;
    *' '[1-5S]) echo no ;;
  esac
}

# Without D-Bus only root may ask.
ask_systemd() {
  answer=$(systemctl is-system-running 2>/dev/null)
  case $answer in
    ''|offline|unknown) sudo -n systemctl is-system-running </dev/null 2>/dev/null ;;
    *) echo "$answer" ;;
  esac
}
