#!/bin/bash
# Prints apt sources for SUITE: the addresses this machine already uses, so that
# an internal mirror is honoured; the public archive where none is configured.
set -euo pipefail
suite=${1:?usage: sources.sh SUITE}
uri=$(apt-get indextargets --format '$(SITE)|$(CODENAME)|$(SUITE)|$(ORIGIN)' 'Created-By: Packages' 2>/dev/null |
  awk -F'|' -v s="$suite" '$4=="Debian" && $2==s {print $1; exit}')
security=$(apt-get indextargets --format '$(SITE)|$(CODENAME)|$(SUITE)|$(LABEL)' 'Created-By: Packages' 2>/dev/null |
  awk -F'|' -v s="$suite" '$4=="Debian-Security" {print $1; exit}')
uri=${uri:-http://deb.debian.org/debian}
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite-updates main"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${security:-${uri%/debian*}/debian-security} $suite-security main"
