# SPDX-License-Identifier: MIT
"""What runs in a machine: steps, and the files that they need.

A step is named PART/WHAT; the table of results has a line for each part. Programs come from a build tree, as meson knows them:
tests of the suite "unit" that are programs (not scripts), and what tests/lab builds for the lab itself.
"""
import dataclasses
import json
import pathlib
import shlex
import subprocess

import initramfs

# The count test fails where its threads have rseq, or have none, against what is told here.
WITH_RSEQ = {"PERCPU_EXPECT_RSEQ": "1"}
WITHOUT_RSEQ = {"PERCPU_EXPECT_RSEQ": "0"}
NO_RSEQ = WITHOUT_RSEQ | {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}


@dataclasses.dataclass
class Step:
    name: str
    command: list
    env: dict = dataclasses.field(default_factory=dict)
    seconds: int = 300
    files: list = dataclasses.field(default_factory=list)  # further files of the build tree

    def shell(self):
        """The command for the guest's shell."""
        words = [f"{name}={value}" for name, value in self.env.items()] + self.command
        return "exec env " + " ".join(shlex.quote(word) for word in words)


class Build:
    """A build tree, as meson tells about it."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory).absolute()
        self.tests = self._introspect("--tests")
        targets = self._introspect("--targets")
        self.outputs = {target["id"]: [pathlib.Path(name) for name in target["filename"]] for target in targets}
        self.by_name = {target["name"]: pathlib.Path(target["filename"][0]) for target in targets
                        if target["type"] in ("executable", "shared library", "shared module")}
        self.library_directories = list(dict.fromkeys(path.parent for path in self.by_name.values() if ".so" in path.name))

    def _introspect(self, what):
        return json.loads(subprocess.run(["meson", "introspect", what, str(self.directory)], check=True,
                                         capture_output=True, text=True).stdout)

    def program(self, name):
        return self.by_name[name]

    def has(self, name):
        return name in self.by_name

    @property
    def preload(self):
        return self.by_name.get("percpu_preload")

    def programs(self, suite):
        """The tests of a suite that are programs of this build tree."""
        for test in self.tests:
            if any(s.endswith(":" + suite) for s in test["suite"]) and test["cmd"][0].startswith(str(self.directory)):
                yield test

    def step(self, part, test, seconds=300):
        env = {name: value for name, value in test["env"].items() if name != "LD_LIBRARY_PATH"}
        made = [path for target in test["depends"] for path in self.outputs.get(target, [])]
        # Programs that are arguments are named from the tree's root, where meson runs tests.
        command = [str(self.directory / word) if (self.directory / word).is_file() else word for word in test["cmd"]]
        return Step(f"{part}/{test['name']}", command, env, seconds, [path for path in made if ".so" in path.name])


def as_told(machine, all_online=False):
    """The machine is the one of its line: what the tests read in sysfs, they are to read there."""
    here = str(pathlib.Path(__file__).parent / "as_told.sh")
    words = [word for pair in machine.sysfs(all_online) for word in pair]
    return [Step("machine/as told", ["sh", here, *words], {}, 60, [here])]


def rules(build):
    """A kernel that says that it checks the rules of rseq ends who leaves them."""
    return [Step("machine/rules of rseq", [str(build.program("lab_rseq_checked"))], {}, 60)]


# The longest program forks thousands of times: three minutes on an idle machine, and more than ten on a busy or an emulated one.
UNIT_SECONDS = 3600


def unit_suite(build, form):
    # The program that makes system calls fail forks for each of thousands of places, which an emulated machine does at two a
    # second: the short form tries fewer.
    more = {"PERCPU_FAULTS_STRIDE": "401"} if form == "short" else {}
    steps = [build.step("unit", test, UNIT_SECONDS) for test in build.programs("unit")]
    return [dataclasses.replace(step, env=step.env | more) for step in steps]


# Of the preload's suite, what does not run in machines: the storm without caches, in which six threads fight for locks, which takes
# emulated CPUs longer than anybody waits; and two whose forks begin anew at each signal, and there is one each
# millisecond.
LEFT_OUT = {"storm, check:full", "pin_storm", "first_frees"}


def preload_suite(build, mib):
    """The programs of the preload's own suite. (Not its scripts, which want more of a system than there is here. Nor, with little memory,
    the one that takes all of an address space of 2 GiB, twice.)"""
    left_out = LEFT_OUT | ({"scarce"} if mib < 4096 else set())
    return [build.step("preload", test, UNIT_SECONDS) for test in build.programs("preload") if test["name"] not in left_out]


def pins(build, threads):
    """Of that suite, what is about the placement of threads, which a machine of one node and two CPUs tells little about."""
    more = {"PIN_TEST_SIBLINGS": str(threads)} if threads > 1 else {}
    steps = [build.step("pin", test, UNIT_SECONDS) for test in build.programs("preload")
             if test["name"].startswith("pin_") and test["name"] not in LEFT_OUT]
    return [dataclasses.replace(step, env=step.env | more) for step in steps]


def faults(build):
    """System calls that fail under the preload, and in the library, as the short form of tests/faults has them. (Not its controls.)"""
    return [build.step("faults", test, UNIT_SECONDS) for test in build.programs("quick")
            if test["name"].startswith("faults_") and not test["name"].startswith("faults_catches_")]


def faults_every(build):
    """The long form, every call with every errno: for what the library asks of a kernel with several nodes only (mbind, move_pages)."""
    return [build.step("faults", test, 4 * UNIT_SECONDS) for test in build.programs("full")
            if test["name"].startswith("faults_") and test["name"].endswith("_every")]


def programs(build):
    """Debian's programs for the machine's processor, which cross.py brings."""
    here = str(pathlib.Path(__file__).parent / "programs.sh")
    return [Step("programs/Debian", ["sh", here, str(build.preload)], {}, 3600, [here, build.preload])]


def fire(build):
    """The sweep over the sequences as they were built. (Not the profiled program, whose events take minutes natively.)"""
    library = build.program("percpu")
    in_guest = f"{initramfs.LIBRARIES}/{library.name.split('.so')[0]}.so.0"  # by its soname, as programs find it there
    steps = [build.step("fire", test, 3600) for test in build.programs("fire") if "profiled" not in test["name"]]
    return [dataclasses.replace(step, command=[in_guest if word == str(library) else word for word in step.command]) for step in steps]


def counts(build, events):
    count = str(build.program("stress_count"))
    return [Step("count/rseq", [count, str(events)], WITH_RSEQ, 600),
            Step("count/no rseq", [count, str(events)], NO_RSEQ, 600)]


def preloaded(build, **more):
    return {"LD_PRELOAD": str(build.preload), **more}


def placements(build, *arguments):
    part = " ".join(["placement/units", *arguments])
    steps = [Step(part, [str(build.program("lab_placement")), *arguments])]
    if build.preload:
        part = " ".join(["placement/heap", *arguments])
        heap = [str(build.program("lab_heap_placement")), *arguments]
        steps += [Step(part, heap, preloaded(build)), Step(part + ", no rseq", heap, preloaded(build, **NO_RSEQ))]
    return steps


def counting_and_malloc(build, events, rseq):
    """What must hold in places where the kernel, or a sandbox, has less than usual: (name, command, environment)."""
    programs = [("count", [str(build.program("stress_count")), str(events)], rseq)]
    if build.preload:
        programs.append(("malloc", [str(build.program("preload_corners"))], preloaded(build)))
        programs.append(("storm", [str(build.program("preload_storm")), "300", "5"], preloaded(build)))
    return programs


def without_rseq(build, events):
    """Everything counts and allocates exactly where there is no rseq: by glibc's tunable, under valgrind, under qemu's user mode."""
    unit = [test for test in build.programs("unit") if "GLIBC_TUNABLES" not in test["env"]]
    steps = []
    for test in unit:
        step = build.step("no rseq", test, UNIT_SECONDS)
        steps.append(dataclasses.replace(step, name=step.name + ", tunable", env=step.env | NO_RSEQ))
    for name, command, env in counting_and_malloc(build, events, WITHOUT_RSEQ):
        steps.append(Step(f"no rseq/{name}, tunable", command, env | NO_RSEQ, 600))
        steps.append(Step(f"no rseq/{name}, valgrind", ["valgrind", "--tool=none", "-q", "--max-threads=1200", *command], env, 600))
        # (A test of malloc has a thousand threads, twice as many as valgrind allows by itself.)
        # qemu 7.2 has a record for each page of the address space that its program reserves, so there must not be 16 TiB. It has
        # one of threads too, which fork does not clear: a child of several threads' process that makes a thread of its own ends
        # in an assertion of qemu's (qemu_plugin_vcpu_init_hook), under glibc's malloc as well. So the storm's children make none.
        command = command + ["0", "0"] if name == "storm" else command
        command = ["qemu-x86_64", *(word for key, value in env.items() for word in ("-E", f"{key}={value}")), *command]
        steps.append(Step(f"no rseq/{name}, qemu-user", ["sh", "-c", "ulimit -v 12000000; exec " + shlex.join(command)], {}, 600))
    return steps


def long_forms(build):
    """The suite "full", each test by itself: a billion events, faults at every call, storms, a sequence of ten million operations."""
    tests = [test for test in build.tests if any(s.endswith(":full") for s in test["suite"])]
    return [build.step("long", test, 4 * 3600) for test in tests]


TORTURE_SECONDS = 1800


def torture(build):
    """Half an hour of everything at once, with rseq and without, and under the preload; and ten thousand forks of each."""
    modules = next(test["cmd"][2:] for test in build.tests if test["name"] == "torture_full")
    modules = [str(build.directory / word) for word in modules]
    everything = [str(build.program("stress_torture")), str(TORTURE_SECONDS), *modules]
    forks = [str(build.program("stress_forks")), "10000"]
    steps = [("torture/library", everything, {}), ("torture/library without rseq", everything, NO_RSEQ),
             ("torture/forks", forks, {}), ("torture/forks without rseq", forks, NO_RSEQ)]
    if build.preload:
        storm = [str(build.program("preload_storm")), "3000", "10000"]
        steps += [("torture/under the preload", everything, preloaded(build)), ("torture/forks under the preload", storm, preloaded(build))]
    return [Step(name, command, env, 4 * TORTURE_SECONDS) for name, command, env in steps]


def odd_cpusets(build, events):
    """The last CPU alone, and all but the first."""
    count = [str(build.program("stress_count")), str(events)]
    corners = [str(build.program("preload_corners"))] if build.preload else None
    steps = []
    for name, cpus in (("the last CPU", "$(($(nproc --all) - 1))"), ("all but the first", "1-$(($(nproc --all) - 1))")):
        taskset = f"exec taskset -c {cpus} "
        steps.append(Step(f"cpuset/count on {name}", ["sh", "-c", taskset + shlex.join(count)], {}, 600, count[:1]))
        if corners:
            words = ["env", f"LD_PRELOAD={build.preload}"] + corners
            steps.append(Step(f"cpuset/malloc on {name}", ["sh", "-c", taskset + shlex.join(words)], {}, 600,
                              corners + [build.preload]))
    return steps


# What a sandbox refuses: system calls, error, and words of what the library says about it ("": there is nothing to say, since the
# same is reached another way).
REFUSALS = [
    ("membarrier", "ENOSYS", "membarrier"),
    ("membarrier", "EPERM", "membarrier"),
    ("mbind,set_mempolicy,get_mempolicy", "EPERM", "NUMA"),
    ("madvise:23,madvise:24,madvise:25", "EPERM", ""),
    ("madvise:23,madvise:24,madvise:25", "EINVAL", ""),
    ("rseq", "ENOSYS", ""),
    ("membarrier,mbind,set_mempolicy,get_mempolicy,move_pages,madvise:23,madvise:24", "ENOSYS", "membarrier,NUMA"),
]


def refusals(build, nr_nodes, events):
    """The count test and storms in sandboxes; each must pass, and say once what it goes without."""
    steps = []
    here = str(pathlib.Path(__file__).parent / "says_once.sh")
    refuse = str(build.program("lab_refuse"))
    for calls, error, says in REFUSALS:
        words = [word for word in says.split(",") if word != "NUMA" or nr_nodes > 1]  # one node: there is nothing to bind
        for name, command, env in counting_and_malloc(build, events, WITHOUT_RSEQ if calls == "rseq" else WITH_RSEQ):
            # The count test waits for no other CPU, so it does not find out about membarrier.
            expected = ",".join(word for word in words if word != "membarrier" or name != "count")
            told = ["sh", here, expected, "env"] + [f"{key}={value}" for key, value in env.items()] + [refuse, calls, error]
            steps.append(Step(f"refused/{name}: {calls} {error}", told + command, {}, 300, [here]))
    return steps


def strict_overcommit(build, events):
    """The kernel's strict accounting (vm.overcommit_memory=2): what is reserved must not count, and what is refused is an error."""
    strict = "echo 2 >/proc/sys/vm/overcommit_memory || exit 1; "
    programs = [("count", [str(build.program("stress_count")), str(events)], "")]
    if build.preload:
        # (Not the corners: they want blocks of gigabytes and the stacks of a thousand threads, which the kernel refuses then.)
        preload = f"LD_PRELOAD={build.preload} "
        programs.append(("count under the preload", programs[0][1], preload))
        programs.append(("storm under the preload", [str(build.program("preload_storm")), "300", "5"], preload))
    return [Step(f"overcommit/{name}", ["sh", "-c", f"{strict}{env}{shlex.join(command)}; status=$?; "
                                        "echo 0 >/proc/sys/vm/overcommit_memory; exit $status"], {}, 1800,
                 command[:1] + ([build.preload] if env else []))
            for name, command, env in programs]


def memory_groups(build):
    """Control groups' memory limits: the patterns of limit.c fit into those that they name."""
    if not build.preload:
        return []
    here = str(pathlib.Path(__file__).parent / "memory_group.sh")
    files = [here, build.program("preload_limit"), build.preload]
    return [Step(f"cgroup/{kind}", ["sh", here, kind, *map(str, files[1:])], {}, 1800, files)
            for kind in ("max", "high")]


def idle(build):
    """What a program pays that hardly allocates: not more on a machine of many CPUs."""
    return [Step("idle/memory", [str(build.program("preload_idle_memory"))], preloaded(build))] if build.preload else []


def hotplugs(build, rounds):
    steps = [Step("hotplug/count", [str(build.program("lab_hotplug")), str(rounds)], {}, 7200)]
    if build.preload:
        steps.append(Step("hotplug/heap", [str(build.program("lab_heap_hotplug")), str(rounds)], preloaded(build), 7200))
    return steps


def all_online():
    each = "for file in /sys/devices/system/cpu/cpu[0-9]*/online; do echo 1 >$file || exit 1; done; "
    return Step("all online", ["sh", "-c", each + "echo lab: CPUs $(cat /sys/devices/system/cpu/online)"])


def again(step):
    part, _, what = step.name.partition("/")
    return dataclasses.replace(step, name=f"{part}, all online/{what}")


def write(image, build, steps):
    """Puts into the image what the steps need."""
    for step in steps:
        for word in step.command + [part.partition("=")[2] for part in step.command] + list(step.env.values()):
            if word.startswith(str(build.directory)) and pathlib.Path(word).is_file():
                image.add_program(word)
        for path in step.files:
            image.add_program(path)
    plan = "".join(f"{step.name}\t{step.seconds}\t{step.shell()}\n" for step in steps)
    image.add_bytes("/lab/plan", plan.encode())
