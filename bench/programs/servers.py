# SPDX-License-Identifier: MIT
"""How Debian's servers are started, so that they serve one user of this machine and leave nothing behind: used by the tests of whole
programs (tests/programs) and by the measurements (suite.py). All listen on Unix sockets only. These are arguments and questions; who
starts a program, and how it is watched, is each user's own."""
import glob
import os
import re
import shutil
import socket
import subprocess


def listens(path):
    """Whether somebody answers at this socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
            return True
        except OSError:
            return False


def redis(path, place, *more):
    """A redis-server without persistence but on demand; `place` gets its dump."""
    return ["redis-server", "--port", "0", "--unixsocket", str(path), "--dir", str(place), "--save", "",
            "--enable-debug-command", "local", *more]


def memcached(path, threads, megabytes):
    return ["memcached", "-s", str(path), "-t", str(threads), "-m", str(megabytes), "-I", "1m",
            *(["-u", "root"] if os.geteuid() == 0 else [])]


class PostgreSQL:
    """The newest PostgreSQL of this machine, and a place for one cluster of it."""

    SOCKET = ".s.PGSQL.5432"

    def __init__(self, place):
        self.place, self.data, self.socket = place, place / "data", place / self.SOCKET
        self.client = ["-h", str(place), "-U", "percpu", "postgres"]

    @staticmethod
    def home():
        """Where its programs lie, "" where it is not installed."""
        found = glob.glob("/usr/lib/postgresql/*/bin/postgres")
        return os.path.dirname(max(found, key=lambda path: int(path.split("/")[4]))) if found else ""

    @classmethod
    def program(cls, name):
        return f"{cls.home()}/{name}"

    def make_place(self):
        """It refuses to run as root, so then the cluster is nobody's."""
        self.place.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chmod(self.place.parent, 0o755)
            shutil.chown(self.place, "nobody", "nogroup")

    @staticmethod
    def user():
        """What subprocess.Popen is told so that a program runs as who may run it."""
        return {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}

    @staticmethod
    def as_user():
        """The same as words in front of a command."""
        return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []

    def initdb(self):
        return [self.program("initdb"), "-D", str(self.data), "-U", "percpu", "--auth", "trust", "-N", "--locale", "C"]

    def server(self, **settings):
        """settings: more of the server's own. Nothing survives a crash of the machine: fsync is off."""
        words = [self.program("postgres"), "-D", str(self.data), "-k", str(self.place)]
        for name, value in {"listen_addresses": "", "fsync": "off", **settings}.items():
            words += ["-c", f"{name}={value}"]
        return words

    def ready(self):
        return [self.program("pg_isready"), *self.client[:2]]

    def ask(self, question):
        return [self.program("psql"), "-XAtc", question, *self.client]

    # After any number of whole transactions of pgbench the sums are the same everywhere: one number if the books balance.
    BOOKS = " UNION ".join(f"SELECT sum({column}) FROM pgbench_{table}" for table, column in
                           (("accounts", "abalance"), ("tellers", "tbalance"), ("branches", "bbalance"), ("history", "delta")))


def folder_of(work, name):
    """A folder for an allocator of that name; blanks and colons separate what LD_PRELOAD lists."""
    return work / re.sub(r"[^\w.-]", "_", name)


def readable_copy(library, place):
    """A copy of a library, and of the libpercpu that it may need, in a folder that any user may read. Returns: environment."""
    place.mkdir(exist_ok=True)
    os.chmod(place, 0o755)
    needed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    libraries = [line.split("=>")[1].split()[0] for line in needed.splitlines() if "libpercpu" in line and "=>" in line]
    for source in [library, *libraries]:
        copy = place / os.path.basename(source)
        if not copy.exists():
            shutil.copy(source, copy)
            os.chmod(copy, 0o755)
    return {"LD_PRELOAD": str(place / os.path.basename(library)), "LD_LIBRARY_PATH": str(place)}
