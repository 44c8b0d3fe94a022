# Removes the folder $1 and the script $2 of a step. Says what is left.
rm -rf "$1" "$2" 2>/dev/null
for left in "$1" "$2"; do
  [ -e "$left" ] || continue
  sudo -n rm -rf "$left" 2>/dev/null </dev/null
  if [ -e "$left" ]; then printf '%s\n' "$left"; fi
done
