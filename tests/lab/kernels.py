# SPDX-License-Identifier: MIT
"""Kernels: Debian's, of this release and of others, unpacked into a cache and never installed.

A kernel is named by what provides it: a file, or a suite of Debian ("stable" is the release of this machine), with a flavour where it
is not to be the one for virtual machines ("trixie+16k": arm64 with pages of 16 KiB). Suites are read from the mirror that this
machine's own apt uses, with lists of their own, so that nothing of the machine changes.
"""
import os
import pathlib
import re
import subprocess

PACKAGES = {"x86_64": ("amd64", "linux-image-cloud-amd64"), "aarch64": ("arm64", "linux-image-cloud-arm64")}


class NotToBeHad(Exception):
    pass


class Archive:
    """One suite of Debian for one architecture, beside the machine's own."""

    def __init__(self, cache, suite, arch):
        self.directory = pathlib.Path(cache) / f"apt-{suite}-{arch}"
        self.arch = arch
        self.suite = suite
        self.config = self.directory / "apt.conf"
        if not self.config.exists():
            self._make()

    def _make(self):
        for name in ("lists/partial", "cache/archives/partial"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "status").touch()
        sources = "".join(f"deb [arch={self.arch} signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {line}\n"
                          for line in self._sources())
        (self.directory / "sources.list").write_text(sources)
        text = (f'Dir::State::Lists "{self.directory}/lists";\nDir::State::status "{self.directory}/status";\n'
                f'Dir::Cache "{self.directory}/cache";\nDir::Etc::SourceList "{self.directory}/sources.list";\n'
                f'Dir::Etc::SourceParts "/dev/null";\nAPT::Architecture "{self.arch}";\nAPT::Architectures {{ "{self.arch}"; }};\n'
                'APT::Sandbox::User "root";\nAcquire::Languages "none";\n')
        config = self.directory / "apt.conf.new"
        config.write_text(text)
        done = subprocess.run(["apt-get", "-qq", "update"], env=dict(os.environ, APT_CONFIG=str(config)), capture_output=True, text=True)
        if done.returncode != 0 or "Failed" in done.stderr:
            raise NotToBeHad(f"the lists of Debian's {self.suite} for {self.arch}: {done.stderr.strip()[-300:]}")
        config.rename(self.config)

    def _sources(self):
        """Lines of sources.list: those of the machine itself, or the suite on the same mirror."""
        told = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Origin: Debian",
                               "Created-By: Packages"], check=True, capture_output=True, text=True).stdout
        own = sorted(set(line for line in told.splitlines() if line.endswith(" main")))
        if self.suite == "stable":
            return own
        plain = [line for line in own if not re.search(r"-(security|updates|backports)\b", line)]
        if not plain:
            raise NotToBeHad("a mirror of Debian: apt on this machine knows none")
        return [f"{plain[0].split()[0]} {self.suite} main"]

    def _apt(self, *arguments, **keywords):
        return subprocess.run(arguments, env=dict(os.environ, APT_CONFIG=str(self.config)), capture_output=True, text=True,
                              **keywords)

    def depends(self, package):
        told = self._apt("apt-cache", "depends", "--important", package).stdout
        return re.findall(r"^\s+(?:Pre)?Depends: ([\w.+:-]+)$", told, re.MULTILINE)

    def unpack(self, package, target):
        """Downloads the package and unpacks it below the target."""
        downloads = self.directory / "cache"
        done = self._apt("apt-get", "download", package, cwd=downloads)
        if done.returncode != 0:
            raise NotToBeHad(f"{package} of Debian's {self.suite} for {self.arch}: {done.stderr.strip()[-300:]}")
        for deb in downloads.glob(f"{package}_*.deb"):
            subprocess.run(["dpkg", "-x", str(deb), str(target)], check=True)
            deb.unlink()


def kernel_in(directory):
    found = sorted(pathlib.Path(directory).glob("**/vmlinu[xz]*"))
    return found[-1] if found else None


def find(cache, name, arch):
    """The kernel's file. `name`: a file, or a suite, and perhaps a flavour."""
    if "/" in name or pathlib.Path(name).is_file():
        if not pathlib.Path(name).is_file():
            raise NotToBeHad(f"the kernel {name}: there is no such file")
        return pathlib.Path(name)
    target = pathlib.Path(cache) / f"kernel-{name}-{arch}"
    if kernel_in(target) is None:
        debian, meta = PACKAGES[arch]
        suite, _, flavour = name.partition("+")
        if flavour:
            meta = f"linux-image-{debian}-{flavour}"
        archive = Archive(cache, suite, debian)
        # The meta package depends on the image; a newer one's image on the package with the file.
        for package in archive.depends(meta):
            if package.startswith("linux-image-"):
                for part in [package] + archive.depends(package):
                    if part.startswith(("linux-image-", "linux-binary-")):
                        archive.unpack(part, target)
    found = kernel_in(target)
    if found is None:
        raise NotToBeHad(f"a kernel of Debian's {name} for {arch}: its packages have no vmlinuz")
    return found
