#!/bin/bash
# Prints apt sources for SUITE: the addresses this machine already uses, so that an
# internal mirror is honoured, in the build and in the image. DEBIAN_MIRROR names the
# archive on a machine that uses none (another distribution, say).
set -euo pipefail
suite=${1:?usage: sources.sh SUITE}
configured() { # LABEL CODENAME: the first address of that archive
  apt-get indextargets --format '$(SITE)|$(CODENAME)|$(LABEL)' 'Created-By: Packages' 2>/dev/null |
    awk -F'|' -v codename="$2" -v label="$1" '$3==label && (codename=="" || $2==codename) {print $1; exit}'
}
uri=${DEBIAN_MIRROR:-$(configured Debian "$suite")}
if [ -z "$uri" ]; then
  echo "sources.sh: this machine has no apt source for Debian $suite; name one in DEBIAN_MIRROR" >&2
  exit 1
fi
security=$(configured Debian-Security "")
key='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
echo "deb $key $uri $suite main"
echo "deb $key $uri $suite-updates main"
echo "deb $key ${security:-${uri%/debian*}/debian-security} $suite-security main"
