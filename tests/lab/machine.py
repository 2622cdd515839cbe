# SPDX-License-Identifier: MIT
"""A machine: what it is made of, read from one line, and qemu running it.

The guest tells what happens on a serial line, which comes here through a pipe; every line that begins with MARK is for us
(guest.sh writes them).

qemu gets one host thread (-accel tcg,thread=single), so that a machine of many CPUs takes no more than its share. An interrupt that
comes right behind a cmpxchg16b finds wrong flags in qemu 7.2 (those of the instruction before are not computed yet), which kills
kernels whose allocator uses it: they are told that there is none (clearcpuid), and programs use it all the same.
"""
import dataclasses
import pathlib
import re
import select
import subprocess
import tempfile
import time

MARK = "@@"
HERE = pathlib.Path(__file__).resolve().parent

# How a run ended, where the guest did not say it itself.
NO_ANSWER = 124
DIED = 125


class BadMachine(Exception):
    pass


@dataclasses.dataclass
class Node:
    cpus: list
    mib: int


@dataclasses.dataclass
class Machine:
    name: str
    arch: str = "x86_64"
    nodes: list = dataclasses.field(default_factory=list)
    distances: dict = dataclasses.field(default_factory=dict)  # (from, to) -> distance
    offline: str = ""
    boot_cpus: int = 0  # 0: all
    threads: int = 1  # CPUs a core
    then_online: bool = False

    @property
    def nr_cpus(self):
        return sum(len(node.cpus) for node in self.nodes)

    def sysfs(self, all_online=False):
        """What files below /sys/devices/system say in this machine, as (file, text)."""
        offline = set() if all_online else {int(cpu) for cpu in self.offline.split(",") if cpu}
        online = [cpu for cpu in range(self.nr_cpus) if cpu not in offline and (all_online or cpu < (self.boot_cpus or self.nr_cpus))]
        nodes = [number for number, node in enumerate(self.nodes) if node.cpus or node.mib]
        yield "cpu/possible", list_text(range(self.nr_cpus))
        yield "cpu/online", list_text(online)
        yield "node/online", list_text(nodes)
        yield "node/has_memory", list_text(number for number in nodes if self.nodes[number].mib)
        for number in nodes:
            yield f"node/node{number}/cpulist", list_text(cpu for cpu in self.nodes[number].cpus if cpu in online)
            # One for each node that is online.
            yield f"node/node{number}/distance", " ".join(str(self.distance(number, other)) for other in nodes)
        for cpu in online if self.threads > 1 else ():
            siblings = [other for other in online if other // self.threads == cpu // self.threads]
            yield f"cpu/cpu{cpu}/topology/thread_siblings_list", list_text(siblings)

    def distance(self, a, b):
        return 10 if a == b else self.distances.get((a, b), 20)


def list_text(numbers):
    """Numbers in ascending order as the kernel writes them: 0-3,5."""
    runs = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if first != last else f"{first}" for first, last in runs)


def parse_cpus(text):
    if text == "-":
        return []
    cpus = []
    for run in text.split(","):
        first, _, last = run.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def parse(line):
    """A line of machines.txt: a name, then words."""
    name, *words = line.split()
    machine = Machine(name)
    for word in words:
        if word == "aarch64":
            machine.arch = word
        elif word == "gap":
            machine.nodes.append(Node([], 0))
        elif match := re.fullmatch(r"(-|\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*):(\d+)", word):
            machine.nodes.append(Node(parse_cpus(match[1]), int(match[2])))
        elif match := re.fullmatch(r"(\d+)([=>])(\d+)/(\d+)", word):
            a, b, distance = int(match[1]), int(match[3]), int(match[4])
            machine.distances[a, b] = distance
            if match[2] == "=":
                machine.distances[b, a] = distance
        elif match := re.fullmatch(r"offline=([\d,]+)", word):
            machine.offline = match[1]
        elif match := re.fullmatch(r"boot=(\d+)", word):
            machine.boot_cpus = int(match[1])
        elif match := re.fullmatch(r"threads=([1-9])", word):
            machine.threads = int(match[1])
        elif word == "then=online":
            machine.then_online = True
        else:
            raise BadMachine(f"machine {name}: expected a node, a distance or an option (tests/lab/README.md), found '{word}'")
    check(machine)
    return machine


def check(machine):
    told = [cpu for node in machine.nodes for cpu in node.cpus]
    if sorted(told) != list(range(len(told))) or not told:
        raise BadMachine(f"machine {machine.name}: expected the CPUs 0..n-1, each on one node, found {told}")
    if not any(node.mib for node in machine.nodes):
        raise BadMachine(f"machine {machine.name}: expected a node with memory, found none")
    if any(len(node.cpus) % machine.threads for node in machine.nodes):
        raise BadMachine(f"machine {machine.name}: expected cores of {machine.threads} CPUs on each node, found a part of one")
    for pair in machine.distances:
        if max(pair) >= len(machine.nodes):
            raise BadMachine(f"machine {machine.name}: expected nodes 0..{len(machine.nodes) - 1}, found a distance of {pair}")


def read_machines():
    """All machines of machines.txt, by name, in its order."""
    lines = (HERE / "machines.txt").read_text().splitlines()
    machines = [parse(line) for line in lines if line.strip() and not line.startswith("#")]
    return {machine.name: machine for machine in machines}


def numa_arguments(machine):
    arguments = []
    for number, node in enumerate(machine.nodes):
        about = f"node,nodeid={number}"
        about += "".join(f",cpus={run}" for run in list_text(node.cpus).split(",") if run)
        if node.mib:
            arguments += ["-object", f"memory-backend-ram,id=m{number},size={node.mib}M"]
            about += f",memdev=m{number}"
        arguments += ["-numa", about]
    if machine.distances:
        for a in range(len(machine.nodes)):
            for b in range(len(machine.nodes)):
                if a != b:
                    arguments += ["-numa", f"dist,src={a},dst={b},val={machine.distance(a, b)}"]
    return arguments


def qemu_command(machine, kernel, initramfs, append, log):
    cpus = machine.nr_cpus
    command = [f"qemu-system-{machine.arch}", "-accel", "tcg,thread=single", "-nodefaults", "-display", "none", "-no-reboot",
               "-smp", f"{cpus},sockets={cpus // machine.threads},cores=1,threads={machine.threads}",
               "-m", f"{sum(n.mib for n in machine.nodes)}M"]
    command += numa_arguments(machine)
    words = ["panic=-1", "rdinit=/init", "mitigations=off", "nokaslr", "audit=0"]
    if machine.boot_cpus:
        words.append(f"maxcpus={machine.boot_cpus}")
    if machine.arch == "x86_64":
        # The kernel's log has a line of its own, so that it does not mix with what the tests say.
        cpu = "max,la57=off,mtrr=off"
        if machine.threads > 1:
            cpu += ",vendor=GenuineIntel"  # AMD's way to tell of siblings (topoext) is not emulated
        command += ["-machine", "q35", "-cpu", cpu, "-serial", "stdio", "-serial", f"file:{log}"]
        words += ["console=ttyS1", "loglevel=5", "lab.tty=ttyS0", "tsc=reliable", "no_timer_check", "lpj=5000000",
                  "clearcpuid=141"]  # cx16: see above
    else:
        command += ["-machine", "virt,gic-version=3", "-cpu", "max,pauth-impdef=on", "-serial", "stdio"]
        words += ["console=ttyAMA0", "loglevel=1", "lab.tty=ttyAMA0"]
    words += append
    return command + ["-kernel", str(kernel), "-initrd", str(initramfs), "-append", " ".join(words)]


@dataclasses.dataclass
class Step:
    """One thing that ran in a machine."""
    name: str
    status: int
    seconds: float
    output: str


@dataclasses.dataclass
class Run:
    status: int
    steps: list
    kernel: str
    log: str

    @property
    def booted(self):
        return self.kernel != ""

    @property
    def release(self):
        """The kernel's, and what it checks of rseq."""
        return self.kernel.split(",")[0] + (", checks rseq" if "rseq checked by the kernel" in self.kernel else "")

    def place(self, step_name):
        """Where a run ended that did not end by itself."""
        return step_name or ("between two steps" if self.booted else "boot")


def lines_of(process, deadline):
    """Yields the guest's lines, until it ends or the time is over; then None in the second case."""
    rest = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            yield None
            return
        if not select.select([process.stdout], [], [], min(left, 1.0))[0]:
            continue
        got = process.stdout.read1(65536)
        if not got:
            return
        *lines, rest = (rest + got).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")


def run(machine, kernel, initramfs, append=(), seconds=600, on_step=None):
    """Boots the machine. Returns the Run; its status is the guest's own, or NO_ANSWER, or DIED."""
    with tempfile.TemporaryDirectory(prefix="lab-") as directory:
        log = pathlib.Path(directory) / "kernel.log"
        log.touch()
        process = subprocess.Popen(qemu_command(machine, kernel, initramfs, list(append), log), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        result = Run(DIED, [], "", "")
        said, name = [], ""
        try:
            for line in lines_of(process, time.monotonic() + seconds):
                if line is None:
                    result.status = NO_ANSWER
                    result.steps.append(Step(result.place(name), NO_ANSWER, 0, "\n".join(said)))
                    break
                word, _, rest = line.partition(" ")
                if word == MARK + "ready":
                    result.kernel = rest
                elif word == MARK + "begin":
                    name, said = rest, []
                elif word == MARK + "end":
                    status, took = rest.split()
                    result.steps.append(Step(name, int(status), float(took), "\n".join(said).strip()))
                    name, said = "", []
                    if on_step:
                        on_step(result.steps[-1])
                elif word == MARK + "done":
                    result.status = int(rest)
                    break
                else:
                    said.append(line)
        finally:
            process.kill()
            process.wait()
        if result.status == DIED:
            result.steps.append(Step(result.place(name), DIED, 0, "\n".join(said)))
        result.log = log.read_text(errors="replace") or "\n".join(said)
        return result
