# The full path of the program $1, or an empty line. Build tools often live where a login without a profile does not look.
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin:/opt/microsoft/powershell/7
command -v "$1" || echo
