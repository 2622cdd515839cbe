#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs a program that must succeed, and say on stderr what it goes without: each thing in one line, and once.
#
#   says_once.sh WORDS COMMAND [ARGUMENT...]      WORDS, separated by commas: each must be in one line of the library's
words=$1
shift
said=$(mktemp)
"$@" 2>"$said"
status=$?
cat "$said" >&2
bad=0
for word in $(echo "$words" | sed 's/,/ /g'); do
  lines=$(grep '^libpercpu:' "$said" | grep -c "$word")
  [ "$lines" -eq 1 ] || { echo "expected one line of the library about $word, found $lines"; bad=1; }
done
again=$(grep '^libpercpu:' "$said" | sort | uniq -d)
[ -z "$again" ] || { echo "expected each line of the library once, found more of: $again"; bad=1; }
rm -f "$said"
[ $status -ne 0 ] && exit $status
exit $bad
