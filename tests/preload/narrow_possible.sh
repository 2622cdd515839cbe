#!/bin/sh
# SPDX-License-Identifier: MIT
# A container whose /sys tells of fewer CPUs than the kernel runs it on: the program counts and allocates there all the same.
#
#   narrow_possible.sh PROGRAM ARGUMENT...      with the environment that the program is to have; run as its own mount namespace
told=$(mktemp)
trap 'rm -f "$told"' EXIT
echo 0 >"$told"
last=$(($(nproc --all) - 1))
inside='mount --bind "$0" /sys/devices/system/cpu/possible && shift && exec "$@"'
unshare -rm sh -c "$inside" "$told" x true 2>/dev/null || { echo "skipped: no namespace of one's own to be had"; exit 77; }
[ "$last" -gt 0 ] && taskset -c "$last" true 2>/dev/null || { echo "skipped: no other CPU"; exit 77; }
for cpus in "$last" "0-$last"; do
  # The preload is set last of all: it is the program's, not the tools'.
  unshare -rm sh -c "$inside" "$told" x taskset -c "$cpus" env ${PRELOADED:+LD_PRELOAD="$PRELOADED"} "$@" || exit 1
done
