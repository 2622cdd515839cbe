#!/bin/sh
# SPDX-License-Identifier: MIT
# The machine is the one that was asked for: files below /sys/devices/system say what they are expected to say.
#
#   as_told.sh FILE TEXT [FILE TEXT]...
bad=0
count=0
while [ $# -gt 0 ]; do
  found=$(cat "/sys/devices/system/$1") || bad=1
  [ "$found" = "$2" ] || { echo "$1: expected '$2', found '$found'"; bad=1; }
  count=$(($count + 1))
  shift 2
done
echo "lab: $count files of sysfs looked at"
exit $bad
