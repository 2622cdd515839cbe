#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Installs into an empty directory, and builds and runs a program by what pkg-config says there.
#
#   install.sh <source dir> <build dir> <prefix> <sanitizers or "none"> <the build's own C compiler>
set -eu
source=$1 build=$2 prefix=$3 sanitize=$4 compiler=$5
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
DESTDIR=$root meson install -C "$build" --no-rebuild --quiet >/dev/null

file=$(find "$root" -name libpercpu.pc)
[ -n "$file" ] || { echo "FAILED: no libpercpu.pc was installed"; exit 1; }
export PKG_CONFIG_LIBDIR="$(dirname "$file"):$(pkg-config --variable pc_path pkg-config)"
export PKG_CONFIG_SYSROOT_DIR=$root
libdir=$(find "$root" -name 'libpercpu.so.0' -printf '%h')
# Where docs/tracing.md has it from.
case $libdir in
  *"$(pkg-config --variable=libdir libpercpu)") ;;
  *) echo "FAILED: pkg-config does not say that libpercpu.so.0 is in $libdir"; exit 1 ;;
esac
for header in percpu.h percpu.hpp percpu/abi.h percpu/ops.h percpu/static.h; do
  [ -f "$root$prefix/include/$header" ] || { echo "FAILED: $header was not installed"; exit 1; }
done

man=$(find "$root" -name percpu_free.3)
[ -n "$man" ] && grep -q percpu_free "$man" || { echo "FAILED: no page for percpu_free(3) was installed"; exit 1; }

extra=
[ "$sanitize" = none ] || extra="-fsanitize=$sanitize"
flags=$(pkg-config --cflags libpercpu)
libs=$(pkg-config --libs libpercpu)
# Nothing but what was installed: no path of the source tree.
$compiler -std=c11 -Wall -Wextra -Werror $extra -DCPU_THREE=0 $flags -o "$root/program" "$source/tests/abi/face.c" $libs
LD_LIBRARY_PATH=$libdir "$root/program"
[ "$(pkg-config --modversion libpercpu)" = "$(sed -n "s/^ *version: '\(.*\)',/\1/p" "$source/meson.build" | head -1)" ]

# The static one, by what pkg-config says about that.
static=$(pkg-config --static --libs libpercpu)
for library in numa urcu-bp; do
  case " $static " in *" -l$library "*) ;; *) echo "FAILED: --static says '$static', without -l$library"; exit 1 ;; esac
done
rm -f "$libdir"/libpercpu.so*
$compiler -std=c11 $extra -DCPU_THREE=0 $flags -o "$root/static" "$source/tests/abi/face.c" $static
"$root/static"
preload=$(find "$root" -name libpercpu_preload.so)
# It exports what the preload uses, so that there is one library under it.
if [ -n "$preload" ]; then
  nm -D --defined-only "$root/static" | awk '{ print $NF }' | sort >"$root/exported"
  nm -D --undefined-only "$preload" | awk '{ print $NF }' | sed -n 's/@.*//; /^percpu_/p' | sort >"$root/wanted"
  [ -s "$root/wanted" ] || { echo "FAILED: the preload uses nothing of the library"; exit 1; }
  missing=$(comm -13 "$root/exported" "$root/wanted")
  [ -z "$missing" ] || { echo "FAILED: programs with the archive do not export" $missing; exit 1; }
fi
echo "installed, found, linked and run"
