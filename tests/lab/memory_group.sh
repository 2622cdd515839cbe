#!/bin/sh
# SPDX-License-Identifier: MIT
# The patterns of tests/preload/limit.c fit under the preload into the limits that they name, of a control group (version 2), as with glibc's
# malloc.
#
#   memory_group.sh max|high LIMIT PRELOAD      LIMIT: the program tests/preload/limit.c
#
# max: the kernel kills who exceeds it. high: it slows them down and counts that (memory.events); what it counts is exact to
# what each CPU takes in advance, 64 pages of the system's.
kind=$1
program=$2
preload=$3
root=/sys/fs/cgroup
group=$root/percpu-test
slack=0
[ "$kind" = high ] && slack=$(($(grep -c ^processor /proc/cpuinfo) * 64 * 1024 * $(sed -n '/^KernelPageSize:/{s/[^0-9]//g;p;q;}' /proc/self/smaps)))
echo +memory >$root/cgroup.subtree_control 2>/dev/null && mkdir -p $group && [ -f $group/memory.max ] ||
  { echo "lab: no memory controller"; exit 77; }

# fits PATTERN MEBIBYTES VARIABLE...: whether it ends well, and without having been slowed down.
fits() {
  pattern=$1
  limit=$2
  shift 2
  echo max >$group/memory.high
  echo max >$group/memory.max
  echo $(($limit * 1048576 + $slack)) >$group/memory.$kind || exit 1
  before=$(events high)
  $bounded sh -c 'echo $$ >"$0"/cgroup.procs && exec env "$@"' $group "$@" "$program" "$pattern" 24 2>/dev/null || return 1
  [ "$(events high)" = "$before" ]
}
events() { sed -n "s/^$1 //p" $group/memory.events; }

bounded=
bad=0
count=0
both=0
"$program" >/tmp/patterns
while read -r pattern limit; do
  count=$(($count + 1))
  glibc=fits
  fits "$pattern" "$limit" A=B || glibc="does not fit"
  ours=fits
  fits "$pattern" "$limit" LD_PRELOAD="$preload" PERCPU_CONF=pin:none || ours="does not fit"
  echo "$pattern under memory.$kind, $limit MiB: glibc's malloc $glibc, ours $ours"
  [ "$ours" = fits ] && [ "$glibc" = fits ] && both=$(($both + 1))
  [ "$ours" = fits ] || [ "$glibc" != fits ] || bad=1
done </tmp/patterns
# A limit that stops nobody would show nothing. (The kernel lets who is above `high` sleep for ever longer.)
bounded="timeout -s KILL 20"
if fits large 4 A=B; then echo "expected 24 MiB not to fit under 4 MiB, found that they do"; bad=1; fi
rmdir $group
echo "lab: $both of $count patterns fit with both under memory.$kind"
[ "$both" -gt 0 ] || { echo "expected patterns that fit with both, found none"; exit 1; }
exit $bad
