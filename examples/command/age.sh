#!/bin/sh
# Wraps database keys with age, for the command provider. A key is an age identity in a directory,
# with one file for each version:
#
#     age-keygen -o DIR/KEY.1        # a key
#     age-keygen -o DIR/KEY.2        # a newer version of it; keep the older ones
#     touch DIR/KEY.disabled         # forbids its use
#
# usage: age.sh wrap|unwrap|newest DIR
set -u
key=$2/$SQLITE_TDE_KEY_ID

# stop CODE WORDS: the codes are in the documentation of `provider::Command`.
stop() {
  echo "$2" >&2
  exit "$1"
}

# The highest number among the files of the key.
newest() {
  for file in "$key".*; do
    version=${file#"$key".}
    case $version in '' | *[!0-9]*) ;; *) echo "$version" ;; esac
  done | sort -n | tail -n 1
}

[ -d "$2" ] || stop 69 "$2 is not there: is its disk mounted?"
[ ! -e "$key.disabled" ] || stop 77 "key $SQLITE_TDE_KEY_ID is disabled: remove $key.disabled"
case $1 in
  newest)
    version=$(newest)
    [ -n "$version" ] || stop 66 "there is no key $SQLITE_TDE_KEY_ID in $2"
    echo "$version"
    ;;
  wrap)
    recipient=$(age-keygen -y "$key.$SQLITE_TDE_KEY_VERSION") || exit 66
    age -r "$recipient"
    ;;
  unwrap)
    [ -e "$key.$SQLITE_TDE_KEY_VERSION" ] || stop 66 "$key.$SQLITE_TDE_KEY_VERSION is missing"
    age -d -i "$key.$SQLITE_TDE_KEY_VERSION" || exit 65
    ;;
esac
