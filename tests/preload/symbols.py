#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every function that allocates or frees is the preload's, and every one that places threads or makes children: none is left to libc or
libstdc++, by whatever name, and nothing else is exported. Its thread-local words are where the thread pointer says, and nowhere else: no
call, and nothing to allocate, before they are there.

symbols.py LIBRARY
"""
import ctypes.util, re, subprocess, sys


def symbols_of(path):
    """(where, name, version): what a library exports."""
    out = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in out.splitlines()]
    return [(where, *name.replace("@@", "@").partition("@")[::2]) for where, kind, name in rows if kind in "TWiVBD"]


def exported(path):
    return {name for _, name, _ in symbols_of(path)}


def path_of(name):
    for line in subprocess.run(["ldd", sys.executable], capture_output=True, text=True).stdout.splitlines():
        if line.strip().startswith(name):
            return line.split("=>")[1].split()[0]
    for line in subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout.splitlines():
        if line.strip().startswith(name + " "):
            return line.split("=>")[1].strip()
    sys.exit(f"symbols: expected {name} on this machine, found none")


ours = exported(sys.argv[1])

# What C, POSIX and glibc name, whatever this libc has.
required = """malloc calloc realloc reallocarray free cfree posix_memalign aligned_alloc memalign valloc pvalloc
    malloc_usable_size free_sized free_aligned_sized mallinfo mallinfo2 malloc_trim malloc_stats malloc_info mallopt
    __libc_malloc __libc_calloc __libc_realloc __libc_reallocarray __libc_free __libc_cfree __libc_memalign __libc_valloc
    __libc_pvalloc __posix_memalign __libc_mallopt __libc_mallinfo""".split()
# new, new[], delete, delete[]: plain and aligned, nothrow, sized. size_t is m.
for kind in ("_Znwm", "_Znam"):
    required += [kind + suffix for suffix in ("", "RKSt9nothrow_t", "St11align_val_t", "St11align_val_tRKSt9nothrow_t")]
for kind in ("_ZdlPv", "_ZdaPv"):
    required += [kind + suffix for suffix in ("", "m", "RKSt9nothrow_t", "St11align_val_t", "mSt11align_val_t",
                                              "St11align_val_tRKSt9nothrow_t")]
# Children that share the memory, forks, and the placement of threads.
required += """vfork __vfork clone __clone __register_atfork pthread_create thrd_create pthread_setattr_default_np pthread_setname_np
    sched_setaffinity sched_getaffinity pthread_setaffinity_np pthread_getaffinity_np pthread_getattr_np syscall system popen _IO_popen
    posix_spawn posix_spawnp execve execv execvpe execvp fexecve execveat execl execle execlp""".split()
# jemalloc's interface, for programs that look whether it is all there.
required += """mallocx rallocx xallocx sallocx dallocx sdallocx nallocx mallctl mallctlnametomib mallctlbymib malloc_stats_print""".split()
missing = [name for name in required if name not in ours]

# And what this machine's libraries have beside it. (What is passed over frees libc's own data, or reads and writes the state
# of its heap for the Emacs of old, or is a hook that libc itself no longer calls.)
heap_name = re.compile(r"(__libc_|__)?(malloc|calloc|realloc|reallocarray|c?free|memalign|aligned_alloc|posix_memalign|p?valloc|mallopt|"
                       r"mallinfo2?|malloc_.*|free_(aligned_)?sized)$")
others = {"malloc_get_state", "malloc_set_state", "__malloc_hook", "__malloc_initialize_hook"}
missing += [name for name in exported(path_of("libc.so.6")) if heap_name.match(name) and name not in ours | others]
missing += [name for name in exported(path_of("libstdc++.so.6")) if re.match(r"_Zn[wa]m|_Zd[la]Pv", name) and name not in ours]
# A function of ours has all names that libc's has, so that none goes past it.
libc = [(where, name) for where, name, version in symbols_of(path_of("libc.so.6")) if version != "GLIBC_PRIVATE"]
taken = {where for where, name in libc if name in ours}
missing += [name for where, name in libc if where in taken and name not in ours | others]
assert not missing, sorted(set(missing))

known = subprocess.run(["readelf", "-d", sys.argv[1]], capture_output=True, text=True, check=True).stdout
extra = sorted(ours - set(required))
assert not extra, extra
assert "NODELETE" in known, known
assert "libstdc++" not in known, known

# initial-exec alone: an offset from the thread pointer. (Not a module and an offset in it, nor a descriptor: a call finds those, and
# may allocate the block.)
relocations = set(re.findall(r"\bR_\w+", subprocess.run(["readelf", "-rW", sys.argv[1]], capture_output=True, text=True, check=True).stdout))
by_call = sorted(name for name in relocations if re.search(r"DTPMOD|DTPOFF|DTPREL|TLSDESC", name))
assert not by_call, by_call
assert any(re.search(r"TPOFF|TPREL", name) for name in relocations), relocations
wanted = subprocess.run(["nm", "-D", "--undefined-only", sys.argv[1]], capture_output=True, text=True, check=True).stdout
assert "__tls_get_addr" not in wanted and "_dl_tlsdesc" not in wanted, wanted
assert "STATIC_TLS" in known, known
print("symbols:", len(ours), "exported, none is missing")
