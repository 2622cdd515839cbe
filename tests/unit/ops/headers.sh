#!/bin/sh
# SPDX-License-Identifier: MIT
# usage: headers.sh SOURCE_ROOT [every]
#
# The header in the hands of its users: with every compiler that is here, in every language and way of compiling that we
# promise, with their warnings as errors; each program runs. And what the contract refuses is refused when compiling,
# with a message that says why. Prints what failed; exits 0 if nothing did, 77 (skipped) if there is no compiler.
#
# "every": each way in each language. Without it each compiler tries each way in one of its languages, gcc in C what clang tries
# in C++, and the other way round: half of the programs, which take most of the time.
set -u
root=$1
which=${2:-half}
here=$root/tests/unit/ops
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
warnings="-Wall -Wextra -Wpedantic -Werror -Wshadow -Wconversion -Wsign-conversion -Wcast-qual -Wcast-align -Wundef"
failures=0
tried=0

fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

# run NAME COMPILER LANGUAGE FLAGS...: builds the program, and runs it.
run() {
  name=$1 compiler=$2 language=$3
  shift 3
  tried=$((tried + 1))
  if ! "$compiler" -x "$language" $warnings -I"$root/include" -I"$here" "$@" \
      "$here/headers_main.c" "$here/headers_elsewhere.c" -x none "$work/fixture.o" -o "$work/program" \
      >"$work/log" 2>&1; then
    fail "$name does not compile"
    head -20 "$work/log"
  elif ! "$work/program"; then
    fail "$name does not run"
  fi
}

# refused COMPILER LANGUAGE MESSAGE CODE: CODE, in a function with suitable variables and behind $before, must not compile because of
# MESSAGE.
before=
refused() {
  compiler=$1 language=$2 message=$3 code=$4
  tried=$((tried + 1))
  cat >"$work/refused.c" <<END
#include <percpu/ops.h>
#include <percpu/static.h>
struct small { uint64_t a, b, c; };
struct two { int a, b; };
union one { int a; long b; };
$before
void f(uint64_t *word, const uint64_t *constant, struct small *record, int **pointer, double *real, int *number,
       struct percpu_list *list, struct percpu_pool *pool, const struct percpu_pair *constant_pair);
void f(uint64_t *word, const uint64_t *constant, struct small *record, int **pointer, double *real, int *number,
       struct percpu_list *list, struct percpu_pool *pool, const struct percpu_pair *constant_pair) {
  $code;
}
END
  case $language in
    c) standard='-std=c11 -Werror=incompatible-pointer-types -Werror=int-conversion' ;;
    *) standard=-std=c++17 ;;
  esac
  if "$compiler" -x "$language" $standard -Wno-unused -I"$root/include" -fsyntax-only "$work/refused.c" >"$work/log" 2>&1; then
    fail "$compiler as $language takes: $code"
  elif ! grep -qiE "$message" "$work/log"; then
    fail "$compiler as $language refuses, without saying '$message': $code"
    grep error "$work/log" | head -3
  fi
}

# What C++ refuses of a static variable, which C refuses anyway.
refused_static() {
  tried=$((tried + 1))
  printf '#include <percpu.h>\nint f();\nPERCPU_DEFINE(int, one) = 1;\n%s\n' "$2" >"$work/static.cc"
  if "$1" -std=c++17 $warnings -I"$root/include" -fsyntax-only "$work/static.cc" >"$work/log" 2>&1; then
    fail "$1 takes: $2"
  elif ! grep -qE 'constant|constinit' "$work/log"; then
    fail "$1 refuses, without saying what is not constant: $2"
  fi
}

# taken COMPILER LANGUAGE WHAT CODE [FLAGS...]: takes CODE.
taken() {
  compiler=$1 language=$2 what=$3 code=$4
  shift 4
  tried=$((tried + 1))
  [ $language = c ] && standard=-std=c11 || standard=-std=c++17
  printf '%s\n' "$code" >"$work/taken.c"
  "$compiler" -x $language $standard $warnings "$@" -I"$root/include" -I"$here" -fsyntax-only "$work/taken.c" >"$work/log" 2>&1 && return
  fail "$compiler as $language does not take $what"
  head -20 "$work/log"
}

# Where attributes' names are macros, of what was included before; and with warnings that not everybody asks for, whatever declares the
# same, in whatever order.
among_others() {
  uses='
#include "headers_use.h"
PERCPU_DECLARE(long, one);
PERCPU_DEFINE(long, one) = 1;
PERCPU_DEFINE(long, two) = 2;
PERCPU_DEFINE_STATIC(int[2], three) = {3};
long f(void);
long f(void) { percpu_inc(percpu_static(one)); return percpu_sum(percpu_static(two)) + percpu_sum(&(*percpu_static(three))[1]); }'
  [ "$2" = c ] && face=percpu.h || face=percpu.hpp
  taken "$1" "$2" 'attributes that are macros' "$(printf '#define %s nothing\n' alias aligned alloc_size always_inline artificial \
      cold constructor deprecated destructor flatten format hot may_alias mode naked noinline nonnull noreturn packed pure \
      section sentinel tls_model unused used vector_size visibility warn_unused_result weak)
#include <$face>
#include <percpu/stack.h>$uses"
  more=-Wredundant-decls
  [ "$2" = c ] && more="$more -Wdeclaration-after-statement"
  case $1 in *clang*) more="$more -Wmissing-variable-declarations" ;; esac
  taken "$1" "$2" "the header with $more" "#include <$face>$uses" $more
  taken "$1" "$2" "percpu.h behind percpu/ops.h with $more" "#include <percpu/ops.h>
#include <$face>$uses" $more
  rseq='#include <sys/rseq.h>'
  echo "$rseq" | "$1" -x "$2" -fsyntax-only - 2>/dev/null || return 0
  taken "$1" "$2" "the header behind sys/rseq.h with $more" "$rseq
#include <$face>$uses" $more
  taken "$1" "$2" "the header before sys/rseq.h with $more" "#include <$face>
$rseq$uses" $more
}

# As programs include headers of C.
with_c_linkage() {
  taken "$1" c++ 'percpu.h inside of extern "C"' 'extern "C" {
#include <percpu.h>
}
PERCPU_DEFINE(int, one) = 1;
extern "C" {
PERCPU_DEFINE(int, two) = 2;
extern "C++" { PERCPU_DEFINE_STATIC(int, three) = 3; }
}
long f() { percpu_inc(percpu_static(one)); return percpu_sum(percpu_static(two)) + percpu_sum(percpu_static(three)); }'
}

# Of static variables, what is bytes, whatever else it is; and what is more than bytes is refused.
static_types() {
  taken "$1" c++ 'static variables of these types' '#include <percpu.h>
#include <atomic>
struct point { int x = 3; const int y = 4; volatile long z = 5; };
PERCPU_DEFINE(point, one);
PERCPU_DEFINE_STATIC(point[3], some);
PERCPU_DEFINE(volatile int, device) = 5;
PERCPU_DEFINE(std::atomic<long>, flag);
PERCPU_DEFINE(int[], row) = {1, 2, 3};
int f() { return percpu_static(some)[0]->x + percpu_static(one)->x + (*percpu_ptr(percpu_static(row), 0))[1]; }'
  for type in 'struct held { ~held() {} int n; }' 'struct self { self(const self &) : at(this) {} self *at; }' \
      'struct held { ~held() = default; held &operator=(const held &) { return *this; } int n; }'; do
    name=${type#struct } name=${name%% *}
    for of in "$name" "$name[2]" "volatile $name"; do
      refused "$1" c++ 'static per-CPU variable is trivially copyable and destructible' "$type; PERCPU_NEEDS_IMAGE_($of)"
    done
  done
}

# The C++ face where there are no exceptions.
plain_face() {
  taken "$1" c++ 'percpu.hpp with -fno-exceptions' '#include <percpu.hpp>
long f() { percpu::counter c; auto p = percpu::make<int>(); ++c; return c.value() + p->sum(); }' -fno-exceptions -fno-rtti
}

refusals() {
  size='element of 1, 2, 4 or 8 bytes'
  constant='writes, and the handle points to const'
  number='integer \(not bool\), a float or a double'
  refused "$1" "$2" "$size" 'percpu_read(record)'
  refused "$1" "$2" "$size" 'percpu_write(record, *record)'
  refused "$1" "$2" "$size" 'struct small was = percpu_xchg(record, *record)'
  for call in 'int *v = percpu_read((int(*)[2])word)' 'percpu_read((struct two *)word)' 'percpu_read((union one *)word)' \
      'percpu_read((float _Complex *)word)' 'struct two t = {1, 2}; percpu_write((struct two *)word, t)' \
      'struct two t = {1, 2}; percpu_cmpxchg((struct two *)word, t, t)'; do
    refused "$1" "$2" 'a number, an enumeration or a pointer|points to an array' "$call"
  done
  refused "$1" "$2" 'static per-CPU variable is not const' 'PERCPU_NEEDS_IMAGE_(const long)'
  refused "$1" "$2" 'static per-CPU variable is not const' 'typedef const int row[3]; PERCPU_NEEDS_IMAGE_(row)'
  for type in 'int[0]' 'struct nothing'; do
    refused "$1" "$2" 'static per-CPU variable has at least one byte' "struct nothing { int none[0]; }; PERCPU_NEEDS_IMAGE_($type)"
  done
  for call in 'percpu_write(constant, 1)' 'percpu_add(constant, 1)' 'percpu_inc(constant)' 'percpu_or(constant, 1)' \
      'percpu_xchg(constant, 1)' 'percpu_cmpxchg(constant, 0, 1)' 'percpu_pool_add(pool, constant, 1)'; do
    refused "$1" "$2" "$constant" "$call"
  done
  refused "$1" "$2" "$number" 'percpu_add(pointer, 1)'
  refused "$1" "$2" "$number" 'percpu_inc((bool *)word)'
  refused "$1" "$2" 'needs an integer element' 'percpu_and(real, 1)'
  refused "$1" "$2" 'needs an integer element' 'percpu_or(pointer, 1)'
  refused "$1" "$2" 'sum needs' 'percpu_sum(pointer)'
  refused "$1" "$2" '8-byte integers or doubles|cannot convert|no matching|incompatible' \
    'percpu_sum_n(number, 1, number)'
  refused "$1" "$2" 'incompatible|cannot convert|no matching|invalid conversion' 'percpu_write(pointer, word)'
  refused "$1" "$2" 'incompatible|cannot convert|no matching|invalid conversion' \
    'double e = 0; percpu_try_cmpxchg(word, &e, 1)'
  refused "$1" "$2" 'incompatible|cannot convert|no matching|invalid' 'percpu_list_push(word, NULL)'
  [ "$2" = c ] || refused "$1" "$2" 'const|qualifier' \
    'struct percpu_pair e = {0, 0}; percpu_cmpxchg16(constant_pair, &e, e)'
  refused "$1" "$2" 'incompatible|cannot convert|no matching|invalid|undefined|incomplete' 'percpu_pool_inc(word, pool)'
}

# Floating numbers that are neither float nor double, of those that the compiler has and tells from these two. In C++ they are numbers
# from C++23 on: the one here is made to be.
other_floats() {
  types='_Float16 __bf16 _Float32 _Float32x _Float64 _Decimal32 _Decimal64'
  has='_Static_assert(_Generic((%s)0, float: 0, double: 0, default: 1), "");\n'
  if [ "$2" = c++ ]; then
    types=_Float16 has='%s f();\n'
    before='namespace std {
      template <> inline constexpr bool is_arithmetic_v<_Float16> = true;
      template <> inline constexpr bool is_floating_point_v<_Float16> = true; }'
  fi
  for type in $types; do
    printf "$has" $type >"$work/has.c"
    "$1" -x "$2" -fsyntax-only "$work/has.c" 2>/dev/null || continue
    for call in add:,1 inc: add_return:,1 sum: write:,1 read:; do
      refused "$1" "$2" 'float (and|or) double' "percpu_${call%:*}(($type *)word${call#*:})"
    done
  done
  before=
}

turn=c
for pair in gcc:g++ clang:clang++; do
  c=${pair%:*} cxx=${pair#*:}
  command -v "$c" >/dev/null && command -v "$cxx" >/dev/null || continue
  "$c" -std=gnu11 -O1 -fPIC -I"$root/include" -I"$root/tests/stress" -c "$here/fixture.c" -o "$work/fixture.o" || exit 1
  for how in '-O0' '-O2' '-O2 -fPIE -pie' '-O2 -fno-pie -no-pie' '-O2 -fPIC' '-O2 -static' '-O2 -mavx2' \
      '-O2 -flto' '-O2 -ffunction-sections -fdata-sections -Wl,--gc-sections' '-O1 -fsanitize=address,undefined' \
      '-O1 -fsanitize=thread' '-O2 -DPERCPU_NO_RSEQ'; do
    [ $turn = c++ ] && [ $which = half ] || run "$c -std=c11 $how" "$c" c -std=c11 $how
    [ $turn = c ] && [ $which = half ] || run "$cxx -std=c++17 $how" "$cxx" c++ -std=c++17 $how
    [ $turn = c ] && turn=c++ || turn=c
  done
  run "$c -std=gnu17" "$c" c -std=gnu17 -O2
  run "$cxx -std=c++20" "$cxx" c++ -std=c++20 -O2 -fno-exceptions -fno-rtti
  refusals "$c" c
  refusals "$cxx" c++
  other_floats "$c" c
  other_floats "$cxx" c++
  among_others "$c" c
  among_others "$cxx" c++
  plain_face "$cxx"
  with_c_linkage "$cxx"
  static_types "$cxx"
  if [ "$cxx" = g++ ]; then
    refused_static "$cxx" 'PERCPU_DEFINE(int, other) = f();'
    refused_static "$cxx" 'PERCPU_DEFINE_STATIC(int, other) = f();'
  fi
  turn=c++
done

[ "$tried" -gt 0 ] || exit 77
echo "$tried tried, $failures failed"
[ "$failures" -eq 0 ]
