#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The lab: virtual machines with many CPUs and nodes, and sandboxes, with the tests in them. See README.md.

usage: lab.py [--form boot|short|full] [--kernel FILE|SUITE]... [--build TREE] [--cache DIRECTORY] [--only PART,...]
              [--write-results] [MACHINE|LINE|host|all]...
"""
import argparse
import os
import pathlib
import platform
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cross
import host
import initramfs
import kernels
import machine as machines
import plan
import results

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Beside this release's own: suites of Debian with an older one, and newer ones.
OTHER_KERNELS = ["bullseye", "trixie", "trixie-backports", "experimental"]

# events of the count test, times that a CPU goes offline and back, seconds for a machine
FORMS = {"boot": (200_000, 4, 1800), "short": (2_000_000, 20, 10800), "full": (20_000_000, 500, 43200)}


class NothingToRun(Exception):
    pass


def part_of(step):
    return step.name.split("/")[0].removesuffix(", all online")


def wanted(step, only):
    return not only or step.name in only or part_of(step) in only


def check_only(only, plans, named):
    """What --only says is in one of the plans (place -> steps), and the places that were named have something of it."""
    def there_is(word):
        lines = []
        for place, steps in plans.items():
            names = [step.name for step in steps if part_of(step) == word.split("/")[0]] if "/" in word else []
            names = names or list(dict.fromkeys(part_of(step) for step in steps if step.name != "all online"))
            lines.append(f"  {place}: {', '.join(names)}")
        return "\n".join(lines)

    for word in only:
        if not any(wanted(step, [word]) for steps in plans.values() for step in steps):
            raise NothingToRun(f"--only: found nothing that is called '{word}'; there is\n{there_is(word)}")
    for place in named:
        if not any(wanted(step, only) for step in plans[place]):
            raise NothingToRun(f"--only: found nothing of '{','.join(only)}' on {place}; there is\n{there_is(only[0])}")


def steps_for(machine, build, form, only):
    events, rounds, _ = FORMS[form]
    steps = plan.placements(build) + plan.idle(build) + plan.counts(build, events) + plan.hotplugs(build, rounds)
    if form != "boot":
        steps += plan.refusals(build, len(machine.nodes), events // 10) + plan.odd_cpusets(build, events // 10)
        steps += plan.strict_overcommit(build, events // 10) + plan.memory_groups(build)
        # What scripts/test does on the processor of this machine.
        if machine.arch == "aarch64" or form == "full":
            steps = plan.preload_suite(build, sum(node.mib for node in machine.nodes)) + plan.fire(build) + steps
        if machine.arch == "aarch64":
            steps = plan.programs(build) + plan.faults(build) + steps
        else:
            steps += plan.pins(build, machine.threads)
        if form == "full" and len(machine.nodes) > 1:
            steps += plan.faults_every(build)
        steps = plan.unit_suite(build, form) + steps
    if machine.then_online or machine.offline:
        # The CPUs that are offline come online while the programs of "late" run, and all of it runs again.
        again = [plan.again(step) for step in plan.as_told(machine, all_online=True) + steps]
        steps += plan.placements(build, "late") + [plan.all_online()] + again
    steps = plan.as_told(machine) + plan.rules(build) + steps
    return [step for step in steps if wanted(step, only) or step.name == "all online"]


def image_for(machine, build, cache, steps):
    if machine.arch == "x86_64":
        image = initramfs.Image(build.library_directories + host.library_directories())
    else:
        image = initramfs.Image(build.library_directories + cross.library_directories(cache), "aarch64-linux-gnu-")
    image.add_bytes("/bin/busybox", pathlib.Path(host.busybox(cache, machine.arch)).read_bytes(), 0o755)
    image.add_link("/bin/sh", "busybox")
    image.add_link("/usr/bin/env", "/bin/busybox")
    image.add_bytes("/init", (pathlib.Path(__file__).parent / "guest.sh").read_bytes(), 0o755)
    image.add_bytes("/lab/offline", machine.offline.encode())
    plan.write(image, build, steps)
    if any(step.name.startswith("programs/") for step in steps):
        cross.add_programs(image, cache)
    return image


def show(step):
    good = "ok" if step.status == 0 else "skipped" if step.status == 77 else f"FAILED, status {step.status}"
    print(f"  {step.name}: {good} ({step.seconds:.1f} s)", flush=True)
    if step.status not in (0, 77):
        print("    " + "\n    ".join(step.output.splitlines()[-40:]), flush=True)


def run_machine(machine, build, kernel, options, only):
    """Returns the Run: of the second boot, where the first died before it began."""
    steps = steps_for(machine, build, options.form, only)
    path = pathlib.Path(options.cache) / f"initramfs-{machine.name}-{os.getpid()}"
    image_for(machine, build, options.cache, steps).write(path)
    try:
        for attempt in (1, 2):
            print(f"== {machine.name}, kernel {kernel.name}: {len(steps)} steps", flush=True)
            run = machines.run(machine, kernel, path, seconds=FORMS[options.form][2], on_step=show)
            if run.booted or attempt == 2:
                break
            print("  it died while it booted; once more", flush=True)
        if not run.booted:
            run.steps[-1].output = f"the kernel did not reach its first program, in {attempt} of {attempt} tries"
    finally:
        path.unlink()
    print(f"  kernel {run.kernel}", flush=True)
    if run.status in (machines.DIED, machines.NO_ANSWER):
        print(f"  {'it died' if run.status == machines.DIED else 'no answer in time'}; the kernel's last words:\n"
              + "\n".join(run.log.splitlines()[-25:]), flush=True)
    return run


def host_steps(build, form):
    """What needs no machine of its own: places without rseq, sandboxes, odd sets of CPUs; in the full form, what takes hours."""
    events = FORMS[form][0]
    steps = plan.without_rseq(build, events // 10) + plan.refusals(build, 1, events) + plan.odd_cpusets(build, events)
    if form == "full":
        steps += plan.long_forms(build) + plan.torture(build)
    return steps


def run_host(build, form, only):
    """Returns the steps that ran on this machine."""
    done = []
    print(f"== this machine, kernel {platform.release()}", flush=True)
    for step in host_steps(build, form):
        if not wanted(step, only):
            continue
        began = time.monotonic()
        try:
            ran = subprocess.run(["sh", "-c", step.shell()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, timeout=step.seconds, cwd=build.directory)
            status, output = ran.returncode, ran.stdout
        except subprocess.TimeoutExpired as late:
            status, output = machines.NO_ANSWER, late.stdout or b""
        done.append(machines.Step(step.name, status, time.monotonic() - began, output.decode(errors="replace").strip()))
        show(done[-1])
    return done


def builds(options):
    """The build tree for a processor; the one for arm64 is made here."""
    made = {}

    def build_for(arch):
        if arch not in made:
            made[arch] = plan.Build(options.build) if arch == "x86_64" else cross.build(options.cache, options.arm_build)
        return made[arch]

    return build_for


def main():
    parser = argparse.ArgumentParser(prog="scripts/lab", description="Runs the lab: see tests/lab/README.md.")
    parser.add_argument("what", nargs="*", default=["all"], metavar="MACHINE",
                        help="a machine of tests/lab/machines.txt, a line like those, 'host', or 'all'")
    parser.add_argument("--form", choices=FORMS, default="full")
    parser.add_argument("--kernel", action="append", default=[], metavar="FILE|SUITE")
    parser.add_argument("--build", default=str(ROOT / "build-test" / "gcc"), help="the build tree, of meson")
    parser.add_argument("--arm-build", default=str(ROOT / "build-test" / "aarch64"), help="the build tree for arm64; made here")
    parser.add_argument("--cache", default=str(ROOT / "build-test" / "lab"), help="where kernels and packages are kept")
    parser.add_argument("--only", default="", metavar="PART,...", help="parts, as tests/lab/README.md has them (unit, placement, ...), or single steps (unit/pool)")
    parser.add_argument("--write-results", action="store_true", help="into tests/lab/RESULTS.md")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    all_machines = machines.read_machines()
    if options.list:
        print("\n".join(all_machines))
        return 0
    only = [part for part in options.only.split(",") if part]
    options.cache = os.path.abspath(options.cache)  # apt reads its paths in directories of its own
    os.makedirs(options.cache, exist_ok=True)
    build_for = builds(options)
    at_commit = results.commit()  # now: scripts/lab has just built it
    order = ["this one", *all_machines]
    bad = 0
    try:
        places = {}  # by name, or the line that was told; None: this machine
        named = [word for word in options.what if word != "all"]
        for word in options.what:
            if word == "all":
                places |= {"host": None} | all_machines
            else:
                places[word] = None if word == "host" else all_machines.get(word) or machines.parse("given " + word)
        if only:
            plans = {place: steps_for(machine, build_for(machine.arch), options.form, []) if machine
                     else host_steps(build_for("x86_64"), options.form) for place, machine in places.items()}
            check_only(only, plans, named)
            places = {place: machine for place, machine in places.items() if any(wanted(step, only) for step in plans[place])}
        for place, machine in places.items():
            if machine is None:
                steps = run_host(build_for("x86_64"), options.form, only)
                bad += sum(step.status not in (0, 77) for step in steps)
                if options.write_results:
                    results.add("this one", platform.release(), options.form, at_commit, steps, order, only)
                continue
            others = OTHER_KERNELS if place not in named and place in ("4x2", "arm-4x2") else []
            for name in options.kernel or ["stable", *others]:
                try:
                    kernel = kernels.find(options.cache, name, machine.arch)
                except kernels.NotToBeHad as error:
                    if name not in others:
                        raise
                    # A suite may be without a kernel for a while: the others run all the same.
                    print(f"== {machine.name}, kernel {name}: FAILED, {error}", flush=True)
                    bad += 1
                    continue
                run = run_machine(machine, build_for(machine.arch), kernel, options, only)
                bad += run.status != 0
                if options.write_results:
                    results.add(machine.name, run.release if run.booted else name, options.form, at_commit, run.steps, order, only)
    except (NothingToRun, machines.BadMachine, kernels.NotToBeHad, FileNotFoundError) as error:
        print(f"scripts/lab: {error}", file=sys.stderr)
        return 2
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
