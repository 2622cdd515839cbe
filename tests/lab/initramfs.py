# SPDX-License-Identifier: MIT
"""The guest's file system: an archive in the kernel's "newc" cpio format, written here.

A file of the build tree lies in the guest where it lies here, so that paths that were compiled in, or are arguments of tests,
mean the same there. The shared libraries that programs need are gathered in LIBRARIES, whatever their place here.
"""
import os
import pathlib
import re
import subprocess
import tempfile

LIBRARIES = "/lab/lib"


class Image:
    def __init__(self, sysroot, tools=""):
        """sysroot: directories to look for shared libraries in, in this order. tools: prefix of readelf and strip."""
        self.sysroot = [pathlib.Path(directory) for directory in sysroot]
        self.tools = tools
        self.entries = {}  # path in the guest -> (mode, bytes)
        for directory in ("proc", "sys", "dev", "tmp", "bin", "etc", "root"):
            self._directory("/" + directory)
        self.add_bytes("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")

    def _directory(self, path):
        if path not in ("", "/") and path not in self.entries:
            self._directory(os.path.dirname(path))
            self.entries[path] = (0o040755, b"")

    def add_bytes(self, path, content, mode=0o644):
        self._directory(os.path.dirname(path))
        self.entries[path] = (0o100000 | mode, content)

    def add_link(self, path, target):
        self._directory(os.path.dirname(path))
        self.entries[path] = (0o120777, target.encode())

    def add_program(self, source, path=None):
        """A program or shared object, and the shared libraries that it needs."""
        source = pathlib.Path(source)
        path = str(path or source.absolute())
        if path in self.entries:
            return
        self.add_bytes(path, self._stripped(source), 0o755)
        for library in self._needed(source):
            self._add_library(library)
            if library.startswith("libc.so"):
                self._add_library("libgcc_s.so.1")  # libc loads it by its name when a thread is cancelled

    def _stripped(self, source):
        with tempfile.TemporaryDirectory() as directory:
            target = os.path.join(directory, "stripped")
            done = subprocess.run([self.tools + "strip", "-g", "-o", target, str(source)], capture_output=True)
            return pathlib.Path(target if done.returncode == 0 else source).read_bytes()

    def _needed(self, source):
        told = subprocess.run([self.tools + "readelf", "-d", "-l", "-W", str(source)], capture_output=True, text=True).stdout
        interpreter = re.search(r"interpreter: (\S+?)\]", told)
        if interpreter and interpreter[1] not in self.entries:
            loader = self._find(os.path.basename(interpreter[1]), interpreter[1])
            self.add_bytes(interpreter[1], loader.read_bytes(), 0o755)
        return re.findall(r"\(NEEDED\)\s+Shared library: \[(.+?)\]", told)

    def _find(self, name, also=None):
        for directory in self.sysroot:
            if (directory / name).exists():
                return directory / name
        if also and os.path.exists(also):
            return pathlib.Path(also)
        raise FileNotFoundError(f"the lab needs the shared library {name}, which is in none of "
                                f"{' '.join(map(str, self.sysroot))}")

    def _add_library(self, name):
        path = f"{LIBRARIES}/{name}"
        if path not in self.entries:
            self.add_program(self._find(name), path)

    def write(self, target):
        with open(target, "wb") as archive:
            for number, (path, (mode, content)) in enumerate(self.entries.items()):
                write_entry(archive, path.lstrip("/"), mode, content, number + 1)
            write_entry(archive, "TRAILER!!!", 0, b"", 0)


def write_entry(archive, name, mode, content, inode):
    def padded(data):
        archive.write(data + b"\0" * (-len(data) % 4))

    name = name.encode() + b"\0"
    # Magic; then inode, mode, owner, group, links, time, size, four device numbers, length of the name, checksum.
    fields = [inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0]
    padded(b"070701" + b"".join(b"%08x" % field for field in fields) + name)
    padded(content)
