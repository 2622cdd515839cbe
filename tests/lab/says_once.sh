#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs a program that must succeed, and say on stderr once, in one line, what it goes without.
#
#   says_once.sh WORD COMMAND [ARGUMENT...]      WORD: what the line must have; "" where nothing may be said
word=$1
shift
said=$(mktemp)
"$@" 2>"$said"
status=$?
cat "$said" >&2
lines=$(grep -c '^libpercpu:' "$said")
with_word=$(grep '^libpercpu:' "$said" | grep -c "$word")
rm -f "$said"
[ $status -eq 0 ] || exit $status
[ -n "$word" ] && expected=1 || expected=0
if [ "$lines" -ne "$expected" ] || { [ -n "$word" ] && [ "$with_word" -ne 1 ]; }; then
  echo "expected $expected line of the library${word:+ about $word}, found $lines, $with_word of them about it"
  exit 1
fi
