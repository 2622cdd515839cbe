# SPDX-License-Identifier: MIT
"""What the lab takes from the machine that it runs on."""
import pathlib

import kernels


def library_directories():
    """Where Debian's loader looks."""
    return [pathlib.Path(directory) for directory in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64")]


def busybox(cache, arch):
    """A static busybox: the installed one, or for another processor the package's."""
    if arch == "x86_64":
        return "/bin/busybox"
    target = pathlib.Path(cache) / f"busybox-{arch}"
    if not (target / "bin/busybox").exists():
        kernels.Archive(cache, "stable", "arm64").unpack("busybox-static", target)
    return target / "bin/busybox"
