# SPDX-License-Identifier: MIT
"""The build for arm64: Debian's cross compiler, a folder of Debian's arm64 libraries, and a build tree of meson's.

Nothing is installed for arm64: the libraries' packages are unpacked into the cache.
"""
import pathlib
import subprocess

import kernels
import plan

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPILER_LIBRARIES = pathlib.Path("/usr/aarch64-linux-gnu/lib")
PACKAGES = ["libnuma-dev", "libnuma1", "liburcu-dev", "liburcu8", "doctest-dev"]

CROSS_FILE = """\
# Made by tests/lab/cross.py.
[binaries]
c = ['ccache', 'aarch64-linux-gnu-gcc']
cpp = ['ccache', 'aarch64-linux-gnu-g++']
ar = 'aarch64-linux-gnu-ar'
strip = 'aarch64-linux-gnu-strip'
pkgconfig = 'pkg-config'

[host_machine]
system = 'linux'
cpu_family = 'aarch64'
cpu = 'aarch64'
endian = 'little'

[properties]
sys_root = '@sysroot@'
pkg_config_libdir = '@sysroot@/usr/lib/aarch64-linux-gnu/pkgconfig'

[built-in options]
c_args = ['-isystem', '@sysroot@/usr/include', '-isystem', '@sysroot@/usr/include/aarch64-linux-gnu']
cpp_args = ['-isystem', '@sysroot@/usr/include', '-isystem', '@sysroot@/usr/include/aarch64-linux-gnu']
c_link_args = ['-L@sysroot@/usr/lib/aarch64-linux-gnu', '-Wl,-rpath-link,@sysroot@/usr/lib/aarch64-linux-gnu']
cpp_link_args = ['-L@sysroot@/usr/lib/aarch64-linux-gnu', '-Wl,-rpath-link,@sysroot@/usr/lib/aarch64-linux-gnu']
"""


def sysroot(cache):
    target = pathlib.Path(cache).absolute() / "sysroot-arm64"
    if not (target / "complete").exists():
        archive = kernels.Archive(cache, "stable", "arm64")
        for package in PACKAGES:
            archive.unpack(package, target)
        (target / "complete").touch()
    return target


def library_directories(cache):
    return [COMPILER_LIBRARIES, sysroot(cache) / "usr/lib/aarch64-linux-gnu", sysroot(cache) / "lib/aarch64-linux-gnu"]


def build(cache, directory, targets=()):
    """Configures and builds the tree. Returns it."""
    directory = pathlib.Path(directory)
    if not (directory / "meson-private").is_dir():
        cross_file = pathlib.Path(cache).absolute() / "aarch64.cross"
        text = CROSS_FILE.replace("@sysroot@", str(sysroot(cache)))
        if subprocess.run(["which", "ccache"], capture_output=True).returncode != 0:
            text = text.replace("'ccache', ", "")
        cross_file.write_text(text)
        run(["meson", "setup", str(directory), str(ROOT), "--cross-file", str(cross_file), "-Dbench=disabled",
             "-Dexamples=disabled", "-Dusdt=disabled"])
    if targets is not None:
        run(["ninja", "-C", str(directory), *targets])
    return plan.Build(directory)


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise kernels.NotToBeHad(f"the build for arm64: '{' '.join(command[:3])}' failed:\n{(done.stdout + done.stderr)[-3000:]}")
