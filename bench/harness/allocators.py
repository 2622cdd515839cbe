# SPDX-License-Identifier: MIT
"""The allocators that malloc benchmarks compare, each a name, what is preloaded, and settings; found on this machine or not."""
import dataclasses
import os
import pathlib
import re
import subprocess

OURS = "libpercpu"             # as it comes: threads are placed (pin:auto)
UNPINNED = "libpercpu pin:none"  # no peer, but ours with less
BASE = "jemalloc"  # what ratios refer to


@dataclasses.dataclass(frozen=True)
class Allocator:
    name: str
    library: str = ""                                    # what is preloaded; none for glibc's own malloc
    settings: dict = dataclasses.field(default_factory=dict)
    version: str = ""
    absent: str = ""                                     # why it cannot be used; empty when it can

    def environment(self, extra=None):
        """The environment of a program that runs under it: that of this process, without what would change other allocators."""
        environment = {name: value for name, value in os.environ.items()
                       if name not in ("LD_PRELOAD", "MALLOC_CONF", "PERCPU_CONF", "GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "LC_ALL")
                       and not name.startswith(("MIMALLOC_", "TCMALLOC_", "MALLOC_"))}
        environment["LC_ALL"] = "C.UTF-8"
        if self.library:
            environment["LD_PRELOAD"] = self.library
        environment.update(self.settings)
        environment.update(extra or {})
        return environment


# Name, the names that its library goes by, settings, and the Debian package.
PEERS = [
    ("jemalloc", ["libjemalloc.so.2"], {}, "libjemalloc2"),
    ("jemalloc percpu_arena", ["libjemalloc.so.2"], {"MALLOC_CONF": "percpu_arena:percpu"}, "libjemalloc2"),
    ("tcmalloc (gperftools)", ["libtcmalloc_minimal.so.4"], {}, "libtcmalloc-minimal4"),
    ("mimalloc", ["libmimalloc.so.3", "libmimalloc.so.2", "libmimalloc.so.2.0"], {}, "libmimalloc2.0"),
    ("tbbmalloc", ["libtbbmalloc_proxy.so.2"], {}, "libtbbmalloc2"),
]


def _known_libraries():
    """What the dynamic linker's cache knows: name to path."""
    for command in ("ldconfig", "/sbin/ldconfig", "/usr/sbin/ldconfig"):
        try:
            listing = subprocess.run([command, "-p"], capture_output=True, text=True, check=False).stdout
        except FileNotFoundError:
            continue
        found = {}
        for line in listing.splitlines():
            match = re.match(r"\s*(\S+) \(([^)]*)\) => (\S+)", line)
            if match and "x32" not in match[2] and ("64" in match[2]):
                found.setdefault(match[1], match[3])
        return found
    return {}


def _package_version(package):
    try:
        told = subprocess.run(["dpkg-query", "-W", "-f=${Version}", package], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return told.stdout.strip()


def _usable(allocator):
    """The same allocator; with a reason why not, if programs do not come up with it. The dynamic linker only warns, so ask a program."""
    if not pathlib.Path(allocator.library).exists():
        return dataclasses.replace(allocator, absent=f"{allocator.library} does not exist")
    try:
        told = subprocess.run(["cat", "/proc/self/maps"], env=allocator.environment(), capture_output=True, text=True, check=False,
                              timeout=20)
    except subprocess.TimeoutExpired:
        return dataclasses.replace(allocator, absent="a program hangs under it")
    if told.returncode != 0 or os.path.realpath(allocator.library) not in told.stdout:
        reason = told.stderr.strip().splitlines()[-1:] or ["programs run without it"]
        return dataclasses.replace(allocator, absent=f"cannot be preloaded: {reason[0]}")
    return allocator


def given(words):
    """The allocator of --with: NAME=PATH, then, with commas between, what it is (version, flags) and variables of its environment."""
    name, equals, rest = words.partition("=")
    path, *told = rest.split(",")
    if not (name and equals and path):
        raise ValueError(f"expected NAME=PATH[,VERSION][,VARIABLE=VALUE], found {words!r}")
    settings = dict(one.split("=", 1) for one in told if re.match(r"[A-Z][A-Z0-9_]*=", one))
    version = ",".join(one for one in told if not re.match(r"[A-Z][A-Z0-9_]*=", one)).strip()
    told = " ".join([version or f"{os.path.basename(path)}, of a version that was not told", *(f"{key}={of}" for key, of in settings.items())])
    return Allocator(name, os.path.abspath(path), settings, told)


def find_allocators(preload, others=()):
    """All allocators in the order of the tables: glibc, peers, `others` (from --with), ours at `preload`, with and without placement."""
    libraries = _known_libraries()
    found = [Allocator("glibc", version=os.confstr("CS_GNU_LIBC_VERSION") or "")]
    for name, sonames, settings, package in PEERS:
        path = next((libraries[soname] for soname in sonames if soname in libraries), "")
        if path:
            found.append(_usable(Allocator(name, path, settings, f"{package} {_package_version(package)}".strip())))
        else:
            found.append(Allocator(name, settings=settings, absent=f"not installed (package {package})"))
    found += [_usable(other) for other in others]
    ours = _usable(Allocator(OURS, os.path.abspath(preload), version="this tree"))
    return [*found, ours, dataclasses.replace(ours, name=UNPINNED, settings={"PERCPU_CONF": "pin:none"})]
