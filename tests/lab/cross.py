# SPDX-License-Identifier: MIT
"""The build for arm64: Debian's cross compiler, a folder of Debian's arm64 libraries, and a build tree of meson's.

Nothing is installed for arm64: the libraries' packages are unpacked into the cache.
"""
import os
import pathlib
import subprocess

import kernels
import plan

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPILER_LIBRARIES = pathlib.Path("/usr/aarch64-linux-gnu/lib")
PACKAGES = ["libnuma-dev", "libnuma1", "liburcu-dev", "liburcu8", "doctest-dev"]
# What programs.sh runs; and of what that depends on, what it can do without, or what is here already.
PROGRAMS = ["python3-minimal", "perl-base", "sqlite3"]
NOT_NEEDED = {"libc6", "libgcc-s1", "dpkg", "debconf", "libcrypt-dev"}

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
c_args = ['-mbranch-protection=standard', '-isystem', '@sysroot@/usr/include', '-isystem', '@sysroot@/usr/include/aarch64-linux-gnu']
cpp_args = ['-mbranch-protection=standard', '-isystem', '@sysroot@/usr/include', '-isystem', '@sysroot@/usr/include/aarch64-linux-gnu']
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
    trees = [sysroot(cache), pathlib.Path(cache).absolute() / "programs-arm64"]
    return [COMPILER_LIBRARIES] + [tree / directory for tree in trees for directory in ("usr/lib/aarch64-linux-gnu", "lib/aarch64-linux-gnu")]


def add_programs(image, cache):
    """Debian's programs for arm64, at their own places in the guest; of their files what lies in bin and lib."""
    target = pathlib.Path(cache).absolute() / "programs-arm64"
    if not (target / "complete").exists():
        archive = kernels.Archive(cache, "stable", "arm64")
        wanted, seen = list(PROGRAMS), set(NOT_NEEDED)
        while wanted:
            package = wanted.pop()
            if package not in seen:
                seen.add(package)
                archive.unpack(package, target)
                wanted += archive.depends(package)
        (target / "complete").touch()
    for path in sorted(target.rglob("*")):
        name = "/" + str(path.relative_to(target))
        if not name.startswith(("/usr/bin/", "/usr/lib/", "/bin/", "/lib/")) or name in image.entries:
            continue
        if path.is_symlink():
            image.add_link(name, os.readlink(path))
        elif path.is_file() and path.read_bytes()[:4] == b"\x7fELF":
            image.add_program(path, name)
        elif path.is_file():
            image.add_bytes(name, path.read_bytes(), path.stat().st_mode & 0o777)


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
