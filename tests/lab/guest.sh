#!/bin/sh
# SPDX-License-Identifier: MIT
# The guest's first process: mounts what programs expect, runs the steps of /lab/plan, tells each one's status, and powers off.
#
# A line of the plan: NAME, a tab, seconds after which it counts as hung, a tab, a command for the shell. What the host is to
# read begins with @@ (machine.py).
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
mount -t debugfs debug /sys/kernel/debug 2>/dev/null
mount -t cgroup2 cgroup /sys/fs/cgroup 2>/dev/null && echo +cpuset >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null
ip link set lo up 2>/dev/null
ulimit -c 0

tty=$(sed 's/.*lab\.tty=\([^ ]*\).*/\1/' /proc/cmdline)
exec </dev/null >"/dev/$tty" 2>&1
stty -opost -onlcr <"/dev/$tty" 2>/dev/null

for cpu in $(sed 's/,/ /g' /lab/offline); do
  echo 0 >"/sys/devices/system/cpu/cpu$cpu/online" || echo "CPU $cpu does not go offline"
done

# Newer kernels kill a program that leaves the rules of rseq, when asked to.
rseq="not checked by this kernel"
if echo 1 >/sys/kernel/debug/rseq/debug; then rseq="checked by the kernel"; fi 2>/dev/null

now() { cut -d' ' -f1 /proc/uptime; }
bad=0
echo "@@ready $(uname -r), $(uname -m), CPUs $(cat /sys/devices/system/cpu/online), nodes $(cat /sys/devices/system/node/online 2>/dev/null), rseq $rseq"
cd /tmp || exit 1
export LD_LIBRARY_PATH=/lab/lib
tab=$(printf '\t')
while IFS="$tab" read -r name seconds command; do
  echo "@@begin $name"
  from=$(now)
  timeout -s KILL "$seconds" sh -c "$command" </dev/null
  status=$?
  [ $status -eq 0 ] || [ $status -eq 77 ] || bad=1
  echo
  echo "@@end $status $(awk "BEGIN { print $(now) - $from }")"
done </lab/plan
echo "@@done $bad"
poweroff -f
