#!/bin/sh
# SPDX-License-Identifier: MIT
# Programs of Debian's say the same under the preload as without it.
#
#   programs.sh PRELOAD
preload=$1
export PATH=/usr/bin:$PATH
bad=0
ran=0

# same NAME COMMAND...
same() {
  name=$1
  shift
  if ! "$@" >plain 2>&1; then
    echo "$name does not run here, without the preload:"
    cat plain
    bad=1
    return
  fi
  LD_PRELOAD=$preload PERCPU_CONF=stats:exit "$@" >under 2>told
  status=$?
  if [ $status -ne 0 ] || ! cmp -s plain under; then
    echo "$name: expected status 0 and \"$(cat plain)\", found $status and \"$(cat under)\""
    cat told
    bad=1
  elif ! grep -q "KiB open" told; then
    echo "$name ran without the preload"
    bad=1
  fi
  ran=$(($ran + 1))
}

same python3 python3 -c '
import os, threading
found = {}
def work(number):
    held = {}
    for i in range(30000):
        key = i * 7919 % 10007
        if i % 3 == 0: held.pop(key, None)
        else: held[key] = str(i) * (i % 50)
    found[number] = sum(map(len, held.values()))
for turn in range(3):
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads: thread.start()
    if turn == 1:
        child = os.fork()
        if child == 0:
            work(99)
            os._exit(found[99] % 100)
        print(os.waitpid(child, 0)[1] >> 8)
    for thread in threads: thread.join()
print(sorted(found.items()), os.system("exit 7") >> 8)'

same perl perl -e '
my %held;
for my $i (0 .. 60000) {
  my $key = $i * 7919 % 10007;
  if ($i % 3 == 0) { delete $held{$key} } else { $held{$key} .= "x" x ($i % 70) }
}
my $all = join ",", map { "$_=$held{$_}" } sort keys %held;
print length($all), " ", unpack("%32C*", $all), " ", `echo child`;'

same sqlite3 sqlite3 :memory: "
create table t (a integer primary key, b text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) insert into t select i, hex(i * 7919) from n;
create index x on t (b);
select count(*), sum(length(b)), max(b) from t;
delete from t where a % 3 = 0;
select count(*) from t where b between '3' and '35';"

echo "lab: $ran programs under the preload"
exit $bad
