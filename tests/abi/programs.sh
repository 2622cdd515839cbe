#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Compiles the face of the library as its users would, with every compiler there is, links the library that was built, and
# runs the result.
#
#   programs.sh <source dir> <dir of libpercpu.so and libpercpu.a> <sanitizers or "none"> <the build's own C compiler>
set -u
here=$1/tests/abi
include=$1/include
libdir=$2
sanitize=$3
own=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
ran=0

# Sanitized libraries need a program that is built by the same compiler in the same way.
extra=
c_compilers="gcc clang"
cxx_compilers="g++ clang++"
if [ "$sanitize" != none ]; then
  extra="-fsanitize=$sanitize"
  case $own in
    *clang*) c_compilers=clang cxx_compilers=clang++ ;;
    *) c_compilers=gcc cxx_compilers=g++ ;;
  esac
fi

# CPU 3 where there is one, as in the documentation.
cpu=3
[ "$(tr -d '\n' </sys/devices/system/cpu/possible | sed 's/.*[-,]//')" -ge 3 ] || cpu=0

# try NAME COMPILER ARGUMENTS...: compiles without a warning, runs, and must return 0.
try() {
  name=$1 compiler=$2
  shift 2
  command -v "$compiler" >/dev/null || return 0
  ran=$((ran + 1))
  if ! "$compiler" -Wall -Wextra -Wpedantic -Werror $extra -DCPU_THREE=$cpu -I"$include" -o "$work/program" "$@" \
      >"$work/log" 2>&1; then
    echo "FAILED to compile: $name ($compiler $*)"
    cat "$work/log"
    failed=$((failed + 1))
  elif ! LD_LIBRARY_PATH=$libdir "$work/program" >"$work/log" 2>&1; then
    echo "FAILED to run: $name ($compiler $*): $?"
    cat "$work/log"
    failed=$((failed + 1))
  fi
}

# refuse COMPILER LANGUAGE STANDARD: a static variable may be aligned to a page, and one whose type asks for more, where it would not lie, is
# refused when compiling.
refuse() {
  command -v "$1" >/dev/null || return 0
  if [ "$2" = c++ ]; then
    # What is older than C++17 is told so, and not by twenty errors about something else.
    ran=$((ran + 1))
    echo '#include <percpu.h>' >"$work/old.cc"
    "$1" -std=c++14 -I"$include" -fsyntax-only "$work/old.cc" >"$work/log" 2>&1
    if [ "$(grep -c 'error:' "$work/log")" -ne 1 ] || ! grep -q 'needs C++17' "$work/log"; then
      echo "FAILED: $1 -std=c++14"
      head -5 "$work/log"
      failed=$((failed + 1))
    fi
  fi
  for define in DEFINE DEFINE_STATIC; do
    ran=$((ran + 1))
    for type in page wide; do
      cat >"$work/aligned.c" <<END
#include <percpu.h>
struct __attribute__((aligned(4096))) page { char bytes[4096]; };
struct __attribute__((aligned(8192))) wide { char bytes[8192]; };
PERCPU_$define(struct $type, variable);
END
      if "$1" -x "$2" -std=$3 -I"$include" -fsyntax-only "$work/aligned.c" >"$work/log" 2>&1; then
        [ $type = page ] && continue
      else
        [ $type = wide ] && grep -q 'aligned to 4096 bytes at most' "$work/log" && continue
      fi
      echo "FAILED: $1 as $2, PERCPU_$define of a type aligned to a $type"
      cat "$work/log"
      failed=$((failed + 1))
    done
  done
}

for compiler in $c_compilers; do
  refuse $compiler c c11
  for optimise in -O0 -O2 '-O2 -fPIC' '-O2 -fno-pie -no-pie' '-O3 -flto'; do
    [ "$optimise" = '-O3 -flto' ] && [ "$sanitize" != none ] && continue
    try "C11 $optimise" $compiler -std=c11 $optimise "$here/face.c" -L"$libdir" -lpercpu
  done
  try 'C17' $compiler -std=c17 -O2 "$here/face.c" -L"$libdir" -lpercpu
  try 'C11 static' $compiler -std=c11 -O2 "$here/face.c" "$libdir/libpercpu.a" -lnuma -lurcu-bp -pthread
done
for compiler in $cxx_compilers; do
  refuse $compiler c++ c++17
  for standard in c++17 c++20; do
    for optimise in -O0 -O2 '-O2 -fPIC' '-O2 -fno-pie -no-pie'; do
      try "$standard $optimise" $compiler -std=$standard $optimise "$here/face.cc" -L"$libdir" -lpercpu
    done
    try "$standard static" $compiler -std=$standard -O2 "$here/face.cc" "$libdir/libpercpu.a" -lnuma -lurcu-bp -pthread
  done
done

echo "$ran programs, $failed failed"
[ "$failed" -eq 0 ] && [ "$ran" -gt 0 ]
