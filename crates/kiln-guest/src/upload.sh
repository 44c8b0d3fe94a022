# Takes a file, from standard input or from a medium in the guest's drive, and puts it at its place, whole or not at all.
#
#   $1 marker   $2 destination   $3 sha256, lower case   $4 bytes   $5 mode   $6 "root" when sudo may be used
#   $7 the medium's label, or empty for standard input   $8 the file's name on it
#
# Answers "MARKER RESULT DETAIL" on one line of standard output, after lines "MARKER at BYTES". The file is written aside in
# the directory of its destination, its digest taken from what lies there, then renamed: nobody sees a part of it. A
# symbolic link is followed, and a file that was there keeps its owner and mode. When the link breaks, standard input ends
# early, the size does not fit, and the part is removed by the same path as any other failure. A medium is mounted for this
# one file, where only its own permissions count.
LC_ALL=C
export LC_ALL
marker=$1 dest=$2 digest=$3 size=$4 mode=$5 root=$6 label=${7-} name=${8-}
answer() { printf '%s %s %s\n' "$marker" "$1" "${2-}"; exit 0; }

as='' aside='' up='' point=''
leave() {
  [ -z "$aside" ] || $as rm -f "$aside"
  [ -n "$point" ] || return 0
  # Nothing may hold it any more.
  exec < /dev/null
  $up umount "$point"
  $up rmdir "$point"
}
trap leave EXIT
trap 'exit 1' HUP INT TERM PIPE

# Makes the medium's file the standard input. No drive, no rights, no such medium: not the file's fault, so the answer is
# "nomedium", and the file may come by another way.
mount_medium() {
  [ "$(id -u)" = 0 ] || up='sudo -n'
  drive=''
  for each in /dev/sr*; do
    [ -b "$each" ] || continue
    # The label as ISO 9660 has it: 32 bytes, padded with spaces, in the sector 16 (ECMA-119, 8.4.7).
    said=$($up dd if="$each" bs=1 skip=32808 count=32 2> /dev/null < /dev/null)
    [ "${said%"${said##*[! ]}"}" != "$label" ] || { drive=$each; break; }
  done
  [ -n "$drive" ] || answer nomedium "no drive has a medium with the label $label"
  folder=$($up mktemp -d /run/kiln-medium-XXXXXX 2>&1 < /dev/null) || answer nomedium "$folder"
  point=$folder
  said=$($up mount -t iso9660 -o ro,nosuid,nodev,noexec "$drive" "$point" 2>&1 < /dev/null) || {
    $up rmdir "$point"
    point=''
    answer nomedium "$said"
  }
  [ -r "$point/$name" ] || answer nomedium "there is no $name on it"
  exec < "$point/$name"
}

# The digest of standard input by whatever this guest has; nothing when it has nothing.
digest_of_input() {
  if command -v sha256sum > /dev/null; then sha256sum
  elif command -v openssl > /dev/null; then openssl dgst -sha256 -r
  elif command -v busybox > /dev/null; then busybox sha256sum
  elif command -v shasum > /dev/null; then shasum -a 256
  elif command -v python3 > /dev/null; then
    python3 -c '
import hashlib, sys
sha = hashlib.sha256()
for block in iter(lambda: sys.stdin.buffer.read(1 << 20), b""):
    sha.update(block)
print(sha.hexdigest())'
  fi 2> /dev/null
}

# From a medium a file comes piece by piece, and while one comes, the one before it is read again from where it lies: on
# two processors the digest takes no time of its own. A pipe between the two tells where each piece begins.
PIECE=33554432
exec 3>&1
copy_pieces() {
  at=0
  while [ "$at" -lt "$size" ]; do
    said=$($as /bin/sh -c 'exec dd bs=1048576 count="$2" >> "$1"' kiln "$aside" $((PIECE / 1048576)) 2>&1) || {
      echo "failed $(printf '%s' "$said" | tr '\n' ' ')"
      return
    }
    echo "$at"
    at=$((at + PIECE))
    [ "$at" -lt "$size" ] || at=$size
    printf '%s at %s\n' "$marker" "$at" >&3
  done
}
read_pieces() {
  while read -r at; do
    case $at in failed*) echo "$at" >&4; return ;; esac
    $as dd if="$aside" bs=1048576 skip=$((at / 1048576)) count=$((PIECE / 1048576)) < /dev/null 2> /dev/null
  done
}

place() {
  # $1: what makes a command root's; empty when we may do it ourselves.
  as=$1
  aside=$dir/.$marker
  if [ -z "$label" ]; then
    said=$($as /bin/sh -c 'umask 077; set -C; exec cat > "$1"' kiln "$aside" 2>&1) || answer write "$said"
    taken=$($as cat "$aside" < /dev/null | digest_of_input)
  else
    said=$($as /bin/sh -c 'umask 077; set -C; : > "$1"' kiln "$aside" 2>&1) || answer write "$said"
    taken=$(copy_pieces | { read_pieces | digest_of_input; } 4>&1)
    case $taken in failed*) answer write "$(printf '%s\n' "$taken" | sed -n '1s/^failed //p')" ;; esac
  fi
  got=$($as /bin/sh -c 'wc -c < "$1"' kiln "$aside" </dev/null)
  got=$((got))
  [ "$got" = "$size" ] || answer short "$got"
  taken=${taken%% *}
  [ -n "$taken" ] || answer nodigest
  [ "$taken" = "$digest" ] || answer digest "$taken"
  if kept=$($as stat -c '%a %u:%g' "$dest" 2>/dev/null); then
    mode=${kept% *}
    said=$($as chown "${kept#* }" "$aside" 2>&1) || answer denied "$said"
  fi
  said=$($as chmod "$mode" "$aside" 2>&1) || answer denied "$said"
  # Taking the digest may have taken long: where nobody listens any more, this is the end of us.
  printf '%s at %s\n' "$marker" "$size"
  said=$($as mv -f "$aside" "$dest" 2>&1 </dev/null) || answer denied "$said"
  aside=''
  answer placed "${as:+root}"
}

# Follow a link to the file it means; one that leads nowhere is an error of the destination.
if [ -L "$dest" ]; then
  dest=$(readlink -f "$dest") || answer nodir "dangling link"
fi
dir=${dest%/*}
[ -n "$dir" ] || dir=/

# Root's directories may hide what is in them, so who may not look asks as root.
sudo_ok() { [ "$root" = root ] && command -v sudo >/dev/null && sudo -n true </dev/null >/dev/null 2>&1; }
if [ ! -d "$dir" ]; then
  sudo_ok && sudo -n test -d "$dir" </dev/null || answer nodir "$dir"
fi
if [ -d "$dest" ] || { [ ! -x "$dir" ] && sudo_ok && sudo -n test -d "$dest" </dev/null; }; then
  answer isdir "$dest"
fi
[ -z "$label" ] || mount_medium
# A file of somebody else in a shared directory (/tmp) is replaced by root only.
if [ -w "$dir" ] && [ -x "$dir" ] && { [ ! -e "$dest" ] || [ -O "$dest" ] || ! sudo_ok; }; then
  place ''
elif sudo_ok; then
  place 'sudo -n'
else
  answer denied "$dir"
fi
