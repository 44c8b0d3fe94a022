# Removes what belongs to the step with nonce $1, also what a broken try to start it left half-made. The other
# arguments are the directories where scripts lie. Says what cannot be removed.
nonce=$1
shift
remove() {
  for path in "$@"; do
    [ -e "$path" ] || continue
    rm -rf "$path" 2>/dev/null || sudo -n rm -rf "$path" </dev/null 2>/dev/null
    if [ -e "$path" ]; then printf '%s\n' "$path"; fi
  done
}
for base in "$HOME" /var/tmp /tmp; do remove "$base/.kiln-step-$nonce"*; done
for dir in "$@"; do
  case $dir in '~'*) dir=$HOME${dir#'~'} ;; esac
  remove "$dir/script_$nonce"_*
done
