/* SPDX-License-Identifier: MIT
 *
 * One promise of thread placement a run, named by the argument. The program executes itself under PIN_TEST_PRELOAD; what
 * is true is asked by the system call instruction, what is shown by libc's functions. It needs two CPUs; with fewer it is skipped (77).
 * Of a machine that has more than kMostCpus it takes as many.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <numa.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#include "../../balance_thread.h"

#define EXPECT(condition)                                                                \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      fprintf(stderr, "%s:%d: expected %s (errno %d)\n", __FILE__, __LINE__, #condition, errno); \
      _exit(1);                                                                          \
    }                                                                                    \
  } while (0)

enum { kRuns = 8, kRunCpus = 8, kMostCpus = kRuns * kRunCpus };

static cpu_set_t initial;
static int nr_cpus;

/* By the instruction, which nobody can take the place of. */
static cpu_set_t true_mask(pid_t tid) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
#if defined(__x86_64__)
  long result = SYS_sched_getaffinity;
  __asm__ volatile("syscall" : "+a"(result) : "D"((long)tid), "S"(sizeof mask), "d"(&mask) : "rcx", "r11", "memory");
#else
  register long number __asm__("x8") = SYS_sched_getaffinity;
  register long result __asm__("x0") = tid;
  register size_t bytes __asm__("x1") = sizeof mask;
  register cpu_set_t *words __asm__("x2") = &mask;
  __asm__ volatile("svc 0" : "+r"(result) : "r"(number), "r"(bytes), "r"(words) : "memory");
#endif
  EXPECT(result > 0);
  return mask;
}

static int is_free(pid_t tid) {
  cpu_set_t mask = true_mask(tid);
  return CPU_EQUAL(&mask, &initial);
}

/* The CPU that a thread is held to, -1 for none. */
static int cpu_of(pid_t tid) {
  cpu_set_t mask = true_mask(tid);
  if (CPU_COUNT(&mask) != 1) return -1;
  int cpu = 0;
  while (!CPU_ISSET(cpu, &mask)) cpu++;
  return cpu;
}

/* Whether a thread waited for its CPU so long that `auto` may have set it free (docs/pinning.md): on a busy machine any may. */
static int waited(pid_t tid) {
  char path[64];
  unsigned long long ran = 0, wait = 0;
  snprintf(path, sizeof path, "/proc/self/task/%d/schedstat", tid != 0 ? (int)tid : (int)syscall(SYS_gettid));
  FILE *file = fopen(path, "r");
  EXPECT(file != NULL && fscanf(file, "%llu %llu", &ran, &wait) == 2);
  fclose(file);
  return wait > 5000000;
}

static int is_placed(pid_t tid) { return cpu_of(tid) >= 0 || waited(tid); }

static cpu_set_t only(int cpu) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CPU_SET(cpu, &mask);
  return mask;
}

static int nth_cpu(int n) {
  int cpu = 0;
  for (;; cpu++) {
    if (CPU_ISSET(cpu, &initial) && n-- == 0) return cpu;
  }
}

/* ---- threads that wait to be told ---- */

struct worker {
  pthread_t thread;
  _Atomic pid_t tid;
  cpu_set_t at_start; /* the true mask, before anything else */
  atomic_int stop;
  void (*first)(struct worker *); /* what it does before it says that it runs; may be null */
};

static void nap(void) { nanosleep(&(struct timespec){0, 1000000}, NULL); }

static void *work(void *argument) {
  struct worker *worker = argument;
  worker->at_start = true_mask(0);
  if (worker->first != NULL) worker->first(worker);
  worker->tid = (pid_t)syscall(SYS_gettid);
  while (!worker->stop) nap();
  return worker;
}

static void begin_with(struct worker *worker, const pthread_attr_t *attr) {
  worker->tid = 0;
  worker->stop = 0;
  EXPECT(pthread_create(&worker->thread, attr, work, worker) == 0);
}

static void await(struct worker *worker) {
  while (worker->tid == 0) nap();
}

static void begin(struct worker *worker) {
  begin_with(worker, NULL);
  await(worker);
}

static void end(struct worker *worker) {
  void *result = NULL;
  worker->stop = 1;
  EXPECT(pthread_join(worker->thread, &result) == 0 && result == worker);
}

/* Begins it until it has a place: on a busy machine it may be set free again at once. Returns its CPU. */
static int begin_placed(struct worker *worker) {
  for (;;) {
    begin(worker);
    const int cpu = cpu_of(worker->tid);
    if (cpu >= 0) return cpu;
    end(worker);
  }
}

/* ---- children ---- */

/* A child, or this program anew as `child_says`, answers 0 if it begins with the initial mask. */
static char mask_text[2 * sizeof(cpu_set_t) + 1];
static char *child_argv[] = {"/proc/self/exe", "child_says", mask_text, NULL};
static char command[sizeof mask_text + 64];

static void write_mask(char *text, const cpu_set_t *mask) {
  for (size_t i = 0; i < sizeof *mask; i++) sprintf(text + 2 * i, "%02x", ((const unsigned char *)mask)[i]);
}

static int status_of(pid_t child) {
  int status = -1;
  EXPECT(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
  return WEXITSTATUS(status);
}

extern char **environ;

static int stays; /* whether the thread is expected to be where it was, afterwards */

static void expect_all_children_free(void) {
  const cpu_set_t before = true_mask(0);
  pid_t child = fork();
  if (child == 0) _exit(is_free(0) ? 0 : 1);
  EXPECT(status_of(child) == 0);
  EXPECT(WEXITSTATUS(system(command)) == 0);
  FILE *pipe = popen(command, "r");
  EXPECT(pipe != NULL && WEXITSTATUS(pclose(pipe)) == 0);
  EXPECT(posix_spawn(&child, child_argv[0], NULL, NULL, child_argv, environ) == 0);
  EXPECT(status_of(child) == 0);
  EXPECT(posix_spawnp(&child, child_argv[0], NULL, NULL, child_argv, environ) == 0);
  EXPECT(status_of(child) == 0);
  child = vfork();
  if (child == 0) {
    execv(child_argv[0], child_argv);
    _exit(126);
  }
  EXPECT(status_of(child) == 0);
  EXPECT(posix_spawn(&child, "/nonexistent", NULL, NULL, child_argv, environ) == ENOENT);
  const cpu_set_t after = true_mask(0);
  /* Meanwhile it may have been set free, where others wanted its CPU. */
  EXPECT((stays && CPU_EQUAL(&before, &after)) || ((!stays || waited(gettid())) && CPU_EQUAL(&initial, &after)));
}

/* ---- the promises ---- */

static void expect_own_cpus(struct worker *workers, int count) {
  cpu_set_t taken;
  CPU_ZERO(&taken);
  for (int i = 0; i < count; i++) {
    const int cpu = cpu_of(workers[i].tid);
    if (cpu < 0 && waited(workers[i].tid)) continue;
    EXPECT(cpu >= 0 && CPU_ISSET(cpu, &initial) && !CPU_ISSET(cpu, &taken));
    EXPECT(CPU_COUNT(&workers[i].at_start) == 1 && CPU_ISSET(cpu, &workers[i].at_start));
    CPU_SET(cpu, &taken);
  }
}

static void own_cpu(void) {
  struct worker *workers = calloc((size_t)nr_cpus, sizeof *workers);
  for (int i = 0; i < nr_cpus; i++) begin(&workers[i]);
  expect_own_cpus(workers, nr_cpus);
  for (int i = 0; i < nr_cpus; i++) end(&workers[i]);
  /* What they leave is used again. */
  for (int i = 0; i < nr_cpus; i++) begin(&workers[i]);
  expect_own_cpus(workers, nr_cpus);
  for (int i = 0; i < nr_cpus; i++) end(&workers[i]);
  free(workers);
}

static void too_many(void) {
  const int count = nr_cpus + 1;
  struct worker *workers = calloc((size_t)count, sizeof *workers);
  for (int i = 0; i < count; i++) begin(&workers[i]);
  for (int i = 0; i < count; i++) EXPECT(is_free(workers[i].tid));
  for (int i = 0; i < count; i++) end(&workers[i]);
  free(workers);
}

static void one_after_too_many(void) {
  too_many();
  struct worker worker = {0};
  begin(&worker);
  EXPECT(is_placed(worker.tid));
  end(&worker);
}

/* The first process of each PID namespace, as of each container, has number 1; they do not all begin with the same core. */
static void *exit_with_cpu(void *argument) {
  (void)argument;
  _exit(cpu_of(0) < 0 ? 255 : cpu_of(0) % 128);
}

static int first_cpu(void) {
  pthread_t thread;
  EXPECT(pthread_create(&thread, NULL, exit_with_cpu, NULL) == 0);
  for (;;) pause();
}

/* -1 where no such namespace can be made. */
static int first_cpu_of_container(void) {
  pid_t child = fork();
  if (child == 0) {
    if (unshare(CLONE_NEWPID) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0) _exit(254);
    child = fork();
    if (child == 0) {
      child_argv[1] = (char *)"first_cpu";
      execv(child_argv[0], child_argv);
    }
    if (child < 0) _exit(254);
    _exit(status_of(child));
  }
  const int cpu = status_of(child);
  EXPECT(cpu < 128 || cpu == 254);
  return cpu == 254 ? -1 : cpu;
}

/* Whether all CPUs are siblings of one core, as far as sysfs says. */
static int is_one_core(void) {
  int cores[2] = {-1, -1};
  for (int i = 0; i < nr_cpus; i++) {
    char path[128];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", nth_cpu(i));
    FILE *file = fopen(path, "r");
    if (file == NULL || fscanf(file, "%d", &cores[i != 0]) != 1) cores[i != 0] = nth_cpu(i);
    if (file != NULL) fclose(file);
    if (i != 0 && cores[1] != cores[0]) return 0;
  }
  return 1;
}

static void any_first_core(void) {
  const int first = is_one_core() ? -1 : first_cpu_of_container();
  if (first < 0) _exit(77);
  int other = first;
  for (int i = 0; i < 100 && other == first; i++) other = first_cpu_of_container();
  EXPECT(other != first); /* with two cores once in 2^100 */
}

static void main_is_free(void) {
  struct worker worker = {0};
  begin(&worker);
  EXPECT(is_free(0));
  end(&worker);
  EXPECT(is_free(0));
}

static int shows_initial(pid_t tid, pthread_t thread) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(tid, sizeof mask, &mask) != 0 || !CPU_EQUAL(&mask, &initial)) return 0;
  memset(&mask, 0xff, sizeof mask);
  if (pthread_getaffinity_np(thread, sizeof mask, &mask) != 0 || !CPU_EQUAL(&mask, &initial)) return 0;
  pthread_attr_t attr;
  if (pthread_getattr_np(thread, &attr) != 0) return 0;
  memset(&mask, 0xff, sizeof mask);
  if (pthread_attr_getaffinity_np(&attr, sizeof mask, &mask) != 0 || !CPU_EQUAL(&mask, &initial)) return 0;
  pthread_attr_destroy(&attr);
  cpu_set_t asked[2]; /* the kernel writes so much as it has, and no more */
  memset(asked, 0x5a, sizeof asked);
  const long bytes = syscall(SYS_sched_getaffinity, tid, sizeof asked, asked);
  if (bytes <= 0 || bytes > (long)sizeof initial || memcmp(asked, &initial, (size_t)bytes) != 0) return 0;
  for (size_t i = (size_t)bytes; i < sizeof asked; i++) {
    if (((unsigned char *)asked)[i] != 0x5a) return 0;
  }
  return 1;
}

/* All other system calls, and failures, are as ever. */
static void system_calls(void) {
  struct worker worker = {0};
  begin(&worker);
  char text[] = "six arguments";
  FILE *file = tmpfile();
  EXPECT(file != NULL && ftruncate(fileno(file), 8192) == 0 && pwrite(fileno(file), text, sizeof text, 4096) == sizeof text);
  const long at = syscall(SYS_mmap, NULL, 4096L, PROT_READ, MAP_PRIVATE, fileno(file), 4096L);
  EXPECT(at != -1 && strcmp((char *)at, text) == 0);
  fclose(file);
  errno = 0;
  EXPECT(syscall(-1L) == -1 && errno == ENOSYS);
  errno = 0;
  cpu_set_t mask;
  EXPECT(syscall(SYS_sched_getaffinity, 0, 1L, &mask) == -1 && errno == EINVAL);
  EXPECT(syscall(SYS_sched_getaffinity, 0, sizeof mask, NULL) == -1 && errno == EFAULT);
  EXPECT(syscall(SYS_getpid) == getpid());
  pid_t child = (pid_t)syscall(SYS_clone, (long)SIGCHLD, 0L, 0L, 0L, 0L);
  if (child == 0) _exit(syscall(SYS_sched_getaffinity, 0, sizeof mask, &mask) > 0 ? 0 : 1);
  EXPECT(status_of(child) == 0);
  end(&worker);
}

static void ask_for_self(struct worker *worker) {
  (void)worker;
  EXPECT(is_placed(0));
  EXPECT(shows_initial(0, pthread_self()));
  EXPECT(shows_initial((pid_t)syscall(SYS_gettid), pthread_self()));
  cpu_set_t mask;
  EXPECT(sched_getaffinity(0, 1, &mask) != 0 && errno == EINVAL);
}

static void libc_hides(void) {
  struct worker worker = {.first = ask_for_self};
  begin(&worker);
  EXPECT(is_placed(worker.tid));
  EXPECT(shows_initial(worker.tid, worker.thread));
  end(&worker);
}

static struct worker inner;

static void *leave(void *how);

static void begin_inner(struct worker *worker) {
  (void)worker;
  begin_with(&inner, NULL);
  cpu_set_t mask;
  EXPECT(pthread_getaffinity_np(inner.thread, sizeof mask, &mask) == 0 && CPU_EQUAL(&mask, &initial));
  await(&inner);
}

static void threads_of_threads(void) {
  for (int i = 0; i < 50; i++) {
    struct worker workers[2] = {{.first = begin_inner}};
    begin(&workers[0]);
    workers[1].tid = inner.tid;
    workers[1].at_start = inner.at_start;
    expect_own_cpus(workers, 2);
    end(&inner);
    end(&workers[0]);
  }
}

/* Of another process the truth is told, also while a thread that has not begun yet may be whoever is asked about. */
static void create_many(struct worker *worker) {
  worker->tid = (pid_t)syscall(SYS_gettid);
  while (!worker->stop) {
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, leave, (void *)0) == 0 && pthread_join(thread, NULL) == 0);
  }
}

static void other_process(void) {
  struct worker worker = {.first = create_many};
  const int cpu = begin_placed(&worker);
  const cpu_set_t wanted = only(cpu);
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) pause();
  }
  EXPECT(sched_setaffinity(child, sizeof wanted, &wanted) == 0);
  for (int i = 0; i < 20000; i++) {
    cpu_set_t mask;
    EXPECT(sched_getaffinity(child, sizeof mask, &mask) == 0 && CPU_EQUAL(&mask, &wanted));
  }
  kill(child, SIGKILL);
  EXPECT(waitpid(child, NULL, 0) == child);
  end(&worker);
}

static void attribute(void) {
  for (int i = 0; i < 2; i++) {
    const cpu_set_t wanted = i == 0 ? only(nth_cpu(1)) : initial;
    pthread_attr_t attr;
    EXPECT(pthread_attr_init(&attr) == 0 && pthread_attr_setaffinity_np(&attr, sizeof wanted, &wanted) == 0);
    struct worker worker = {0};
    begin_with(&worker, &attr);
    await(&worker);
    const cpu_set_t mask = true_mask(worker.tid);
    EXPECT(CPU_EQUAL(&mask, &wanted));
    end(&worker);
    pthread_attr_destroy(&attr);
  }
}

/* The creator sets the mask as soon as it knows the thread, which may not have begun. */
static void set_at_once(void) {
  for (int i = 0; i < 500; i++) {
    const cpu_set_t wanted = i % 2 == 0 ? only(nth_cpu(i / 2 % 2)) : initial;
    struct worker worker = {0};
    begin_with(&worker, NULL);
    EXPECT(pthread_setaffinity_np(worker.thread, sizeof wanted, &wanted) == 0);
    await(&worker);
    const cpu_set_t mask = true_mask(worker.tid);
    EXPECT(CPU_EQUAL(&mask, &wanted));
    cpu_set_t shown;
    EXPECT(sched_getaffinity(worker.tid, sizeof shown, &shown) == 0 && CPU_EQUAL(&shown, &wanted));
    end(&worker);
  }
}

static void set_later(void) {
  struct worker *workers = calloc((size_t)nr_cpus + 1, sizeof *workers);
  begin(&workers[0]);
  const cpu_set_t wanted = only(cpu_of(workers[0].tid)); /* the very one that we chose */
  EXPECT(sched_setaffinity(workers[0].tid, sizeof wanted, &wanted) == 0);
  cpu_set_t shown;
  EXPECT(sched_getaffinity(workers[0].tid, sizeof shown, &shown) == 0 && CPU_EQUAL(&shown, &wanted));
  for (int i = 1; i <= nr_cpus; i++) begin(&workers[i]); /* all others are free again */
  const cpu_set_t mask = true_mask(workers[0].tid);
  EXPECT(CPU_EQUAL(&mask, &wanted));
  EXPECT(is_free(workers[1].tid));
  for (int i = 0; i <= nr_cpus; i++) end(&workers[i]);
  free(workers);
}

/* Another CPU than ours, and the very one that we chose. */
static void set_by_system_call(void) {
  for (int same = 0; same < 2; same++) {
    struct worker *workers = calloc((size_t)nr_cpus + 1, sizeof *workers);
    begin(&workers[0]);
    const int ours = cpu_of(workers[0].tid);
    const cpu_set_t wanted = only(same && ours >= 0 ? ours : ours == nth_cpu(0) ? nth_cpu(1) : nth_cpu(0));
    EXPECT(syscall(SYS_sched_setaffinity, workers[0].tid, sizeof wanted, &wanted) == 0);
    cpu_set_t shown;
    EXPECT(sched_getaffinity(workers[0].tid, sizeof shown, &shown) == 0 && CPU_EQUAL(&shown, &wanted));
    for (int i = 1; i <= nr_cpus; i++) begin(&workers[i]);
    const cpu_set_t mask = true_mask(workers[0].tid);
    EXPECT(CPU_EQUAL(&mask, &wanted));
    for (int i = 0; i <= nr_cpus; i++) end(&workers[i]);
    free(workers);
  }
}

static int set_by_libc(const cpu_set_t *mask) { return sched_setaffinity(0, sizeof *mask, mask); }
static int set_by_pthread(const cpu_set_t *mask) { return pthread_setaffinity_np(pthread_self(), sizeof *mask, mask); }
static int set_by_syscall(const cpu_set_t *mask) { return (int)syscall(SYS_sched_setaffinity, 0, sizeof *mask, mask); }
/* As numa_run_on_node() does it. */
static int set_by_libnuma(const cpu_set_t *mask) {
  struct bitmask *bits = numa_allocate_cpumask();
  for (unsigned cpu = 0; cpu < CPU_SETSIZE && cpu < bits->size; cpu++) {
    if (CPU_ISSET(cpu, mask)) numa_bitmask_setbit(bits, cpu);
  }
  const int result = numa_sched_setaffinity(0, bits);
  numa_bitmask_free(bits);
  return result;
}

static int (*set_own_mask)(const cpu_set_t *);
static cpu_set_t own_mask;
static char own_mask_text[sizeof mask_text];
static char *own_mask_argv[] = {"/proc/self/exe", "child_says", own_mask_text, NULL};

/* What the thread sets for itself is the very mask that we chose: it is the program's all the same. It is shown, and whoever the thread
   makes has it. */
static void set_own(struct worker *worker) {
  (void)worker;
  own_mask = true_mask(0);
  EXPECT(set_own_mask(&own_mask) == 0);
  cpu_set_t mask;
  EXPECT(sched_getaffinity(0, sizeof mask, &mask) == 0 && CPU_EQUAL(&mask, &own_mask));
  CPU_ZERO(&mask);
  EXPECT(syscall(SYS_sched_getaffinity, 0, sizeof mask, &mask) > 0 && CPU_EQUAL(&mask, &own_mask));
  write_mask(own_mask_text, &own_mask);
  pid_t child = fork();
  if (child == 0) {
    execv(own_mask_argv[0], own_mask_argv);
    _exit(126);
  }
  EXPECT(status_of(child) == 0);
  EXPECT(posix_spawn(&child, own_mask_argv[0], NULL, NULL, own_mask_argv, environ) == 0);
  EXPECT(status_of(child) == 0);
  if (CPU_EQUAL(&own_mask, &initial)) return; /* it had been set free already */
  begin(&inner);
  EXPECT(CPU_EQUAL(&inner.at_start, &own_mask));
  end(&inner);
}

static void set_the_same(void) {
  static int (*const kWays[])(const cpu_set_t *) = {set_by_libc, set_by_pthread, set_by_syscall, set_by_libnuma};
  struct worker *workers = calloc((size_t)nr_cpus + 1, sizeof *workers);
  for (size_t way = 0; way < sizeof kWays / sizeof kWays[0]; way++) {
    set_own_mask = kWays[way];
    workers[0].first = set_own;
    for (int i = 0; i <= nr_cpus; i++) begin(&workers[i]); /* with `auto` all others are free again */
    const cpu_set_t mask = true_mask(workers[0].tid);
    EXPECT(CPU_EQUAL(&mask, &own_mask));
    for (int i = 0; i <= nr_cpus; i++) end(&workers[i]);
  }
  free(workers);
}

/* A thread inherits what the program set for its creator. */
static void set_by_creator(void) {
  const cpu_set_t wanted = only(nth_cpu(1));
  EXPECT(sched_setaffinity(0, sizeof wanted, &wanted) == 0);
  struct worker worker = {0};
  begin(&worker);
  cpu_set_t mask;
  EXPECT(sched_getaffinity(worker.tid, sizeof mask, &mask) == 0 && CPU_EQUAL(&mask, &wanted));
  end(&worker);
}

static void failure(void) {
  struct worker *workers = calloc((size_t)nr_cpus, sizeof *workers);
  for (int i = 0; i < nr_cpus - 1; i++) begin(&workers[i]);
  pthread_attr_t attr;
  EXPECT(pthread_attr_init(&attr) == 0 && pthread_attr_setstacksize(&attr, (size_t)1 << 46) == 0);
  for (int i = 0; i < 1000; i++) {
    pthread_t thread;
    EXPECT(pthread_create(&thread, &attr, work, NULL) == EAGAIN);
  }
  for (int i = 0; i < nr_cpus - 1; i++) EXPECT(is_placed(workers[i].tid));
  begin(&workers[nr_cpus - 1]);
  expect_own_cpus(workers, nr_cpus); /* no CPU was lost to those that never were */
  for (int i = 0; i < nr_cpus; i++) end(&workers[i]);
  free(workers);
}

static void *leave(void *how) {
  switch ((int)(long)how) {
    case 0: return NULL;
    case 1: pthread_exit(NULL);
    case 2: pthread_cancel(pthread_self()); pthread_testcancel(); break;
    case 3: pause(); break;
  }
  abort();
}

/* However threads end, detached or joined, at once or not, their CPUs are given to the next. */
static void ends(void) {
  for (long i = 0; i < 400; i++) {
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, leave, (void *)(i % 4)) == 0);
    if (i % 4 == 3) EXPECT(pthread_cancel(thread) == 0);
    EXPECT(pthread_join(thread, NULL) == 0);
  }
  own_cpu();
}

static _Atomic pid_t c11_tid;
static atomic_int c11_cpu;

static int c11_work(void *argument) {
  c11_tid = (pid_t)syscall(SYS_gettid);
  c11_cpu = cpu_of(0);
  return *(int *)argument;
}

static void c11(void) {
  int argument = -7;
  int result = 0;
  thrd_t thread;
  EXPECT(thrd_create(&thread, c11_work, &argument) == thrd_success && thrd_join(thread, &result) == thrd_success);
  EXPECT(result == -7 && c11_cpu >= 0);
}

/* What a thread without attributes begins with may be the program's too; until it takes that back. */
static void default_attribute(void) {
  pthread_attr_t attr, plain;
  EXPECT(pthread_attr_init(&plain) == 0 && pthread_attr_init(&attr) == 0);
  for (int i = 0; i < 2; i++) {
    const cpu_set_t wanted = i == 0 ? only(nth_cpu(1)) : initial;
    EXPECT(pthread_attr_setaffinity_np(&attr, sizeof wanted, &wanted) == 0 && pthread_setattr_default_np(&attr) == 0);
    struct worker worker = {0};
    begin(&worker);
    const cpu_set_t mask = true_mask(worker.tid);
    EXPECT(CPU_EQUAL(&mask, &wanted));
    thrd_t thread;
    int argument = 0;
    EXPECT(thrd_create(&thread, c11_work, &argument) == thrd_success && thrd_join(thread, NULL) == thrd_success);
    EXPECT(c11_cpu == (i == 0 ? nth_cpu(1) : -1));
    end(&worker);
    begin_with(&worker, &plain); /* this one has attributes, without a mask */
    await(&worker);
    EXPECT(is_placed(worker.tid));
    end(&worker);
    EXPECT(pthread_setattr_default_np(&plain) == 0);
    begin(&worker);
    EXPECT(is_placed(worker.tid));
    end(&worker);
  }
}

static void named(void) {
  for (int i = 0; i < 200; i++) {
    struct worker workers[3] = {{0}, {0}, {0}};
    begin_with(&workers[0], NULL);
    if (i % 2 == 0) await(&workers[0]); /* else the name comes, now and then, before the thread has begun */
    EXPECT(pthread_setname_np(workers[0].thread, i % 4 < 2 ? "percpu-test" : "jemalloc_bg_thd") == 0);
    await(&workers[0]);
    EXPECT(is_free(workers[0].tid));
    end(&workers[0]);
  }
  struct worker worker = {0}; /* other names change nothing */
  begin(&worker);
  EXPECT(pthread_setname_np(worker.thread, "worker") == 0 && is_placed(worker.tid));
  end(&worker);
}

static void skipped(void) {
  struct worker workers[3] = {{0}, {0}, {0}};
  for (int i = 0; i < 3; i++) begin(&workers[i]);
  EXPECT(is_placed(workers[0].tid) && is_free(workers[1].tid) && is_placed(workers[2].tid));
  EXPECT(pthread_setname_np(workers[2].thread, "spare-3") == 0);
  EXPECT(is_free(workers[2].tid));
  for (int i = 0; i < 3; i++) end(&workers[i]);
}

static void have_children(struct worker *worker) {
  (void)worker;
  EXPECT(is_placed(0));
  expect_all_children_free();
}

static void children(void) {
  stays = 1;
  expect_all_children_free();
  struct worker worker = {.first = have_children};
  begin(&worker);
  EXPECT(is_placed(worker.tid));
  end(&worker);
}

/* Every form of exec, from the child of a fork that makes a thread of its own for it: so it is called in a place. */
static void *exec_in_thread(void *how) {
  char *const *envp = environ;
  if (cpu_of(0) < 0) _exit(99);
  switch ((int)(long)how) {
    case 0: execve(child_argv[0], child_argv, envp); break;
    case 1: execv(child_argv[0], child_argv); break;
    case 2: execvp(child_argv[0], child_argv); break;
    case 3: execvpe(child_argv[0], child_argv, envp); break;
    case 4: execl(child_argv[0], child_argv[0], child_argv[1], child_argv[2], (char *)NULL); break;
    case 5: execle(child_argv[0], child_argv[0], child_argv[1], child_argv[2], (char *)NULL, envp); break;
    case 6: execlp(child_argv[0], child_argv[0], child_argv[1], child_argv[2], (char *)NULL); break;
    case 7: fexecve(open(child_argv[0], O_RDONLY | O_CLOEXEC), child_argv, envp); break;
    case 8: execveat(AT_FDCWD, child_argv[0], child_argv, envp, 0); break;
  }
  _exit(98);
}

static void exec(void) {
  for (long how = 0; how <= 8; how++) {
    pid_t child = fork();
    if (child == 0) {
      pthread_t thread;
      if (pthread_create(&thread, NULL, exec_in_thread, (void *)how) != 0) _exit(97);
      pause();
    }
    EXPECT(status_of(child) == 0);
  }
}

static void exec_and_fail(struct worker *worker) {
  (void)worker;
  const int cpu = cpu_of(0);
  EXPECT(cpu >= 0);
  EXPECT(execv("/nonexistent", child_argv) == -1 && errno == ENOENT);
  EXPECT(execlp("no-such-program-at-all", "x", (char *)NULL) == -1 && errno == ENOENT);
  EXPECT(cpu_of(0) == cpu);
}

static void exec_fails(void) {
  struct worker worker = {.first = exec_and_fail};
  begin(&worker);
  end(&worker);
}

/* _Fork() and execve() are for signal handlers, and so for the child of a process with threads, whatever these hold. */
static void *ask_always(void *stop) {
  cpu_set_t mask;
  while (!__atomic_load_n((int *)stop, __ATOMIC_RELAXED)) pthread_getaffinity_np(pthread_self(), sizeof mask, &mask);
  return NULL;
}

static void fork_bare_and_exec(struct worker *worker) {
  (void)worker;
  EXPECT(cpu_of(0) >= 0);
  for (int i = 0; i < 200; i++) {
    pid_t child = _Fork();
    if (child == 0) {
      alarm(600); /* bounds a hang */
      execve(child_argv[0], child_argv, environ);
      _exit(98);
    }
    EXPECT(status_of(child) == 0);
  }
}

/* A placed thread does it while another one asks all the time. */
static void beside_asker(void (*first)(struct worker *)) {
  int stop = 0;
  pthread_t asker;
  EXPECT(pthread_create(&asker, NULL, ask_always, &stop) == 0);
  struct worker worker = {.first = first};
  begin(&worker);
  end(&worker);
  __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
  pthread_join(asker, NULL);
}

static void exec_in_bare_child(void) { beside_asker(fork_bare_and_exec); }

/* What such a child sets for itself stays: the very mask that its parent has of us too. A child of vfork() does so on its parent's
   memory, whose place stays. */
static void set_in_children(struct worker *worker) {
  (void)worker;
  const cpu_set_t ours = true_mask(0);
  write_mask(own_mask_text, &ours);
  for (int i = 0; i < 200; i++) {
    pid_t child = i % 2 == 0 ? _Fork() : vfork();
    if (child == 0) {
      if (i % 2 == 0) alarm(600);
      if ((i / 2 % 2 == 0 ? set_by_libc : set_by_syscall)(&ours) != 0) _exit(97);
      execve(own_mask_argv[0], own_mask_argv, environ);
      _exit(98);
    }
    EXPECT(status_of(child) == 0);
  }
  cpu_set_t shown;
  EXPECT(sched_getaffinity(0, sizeof shown, &shown) == 0 && CPU_EQUAL(&shown, &initial));
  const cpu_set_t after = true_mask(0);
  EXPECT(CPU_EQUAL(&after, &ours) || (waited(gettid()) && CPU_EQUAL(&after, &initial)));
  expect_all_children_free();
}

static void set_in_child(void) {
  stays = 1;
  beside_asker(set_in_children);
}

/* A child of vfork() has its parent's mask, and is shown the initial one, by whichever of its numbers it asks. */
static void ask_in_vfork_child(struct worker *worker) {
  (void)worker;
  EXPECT(is_placed(0));
  for (int way = 0; way < 4; way++) {
    pid_t child = vfork();
    if (child == 0) {
      cpu_set_t mask;
      CPU_ZERO(&mask);
      const pid_t tid = way % 2 == 0 ? 0 : getpid();
      const long result = way < 2 ? sched_getaffinity(tid, sizeof mask, &mask) : syscall(SYS_sched_getaffinity, tid, sizeof mask, &mask);
      _exit(result < 0 ? 97 : CPU_EQUAL(&mask, &initial) ? 0 : 1);
    }
    EXPECT(status_of(child) == 0);
  }
}

static void vfork_child_asks(void) {
  struct worker worker = {.first = ask_in_vfork_child};
  begin(&worker);
  end(&worker);
}

/* A child has the mask that its parent had when the fork began. Before it execs, or has copied all memory, another thread may set the
   parent free, or give it a mask, so that the memory, which is copied later, or never, says nothing of that place any more. */
static pid_t forked_child(void) {
  pid_t child = fork();
  if (child != 0) return child;
  _exit(is_free(0) ? 0 : 1);
}

static pid_t bare_child(void) {
  pid_t child = _Fork();
  if (child != 0) return child;
  execve("/nonexistent", child_argv, environ);
  _exit(is_free(0) ? 0 : 1);
}

static pid_t vforked_child(void) {
  pid_t child = vfork();
  if (child != 0) return child;
  nap();
  execve(child_argv[0], child_argv, environ);
  _exit(98);
}

struct forks {
  pid_t (*child)(void);
  atomic_int begun;
};

static void *fork_until_free(void *argument) {
  struct forks *forks = argument;
  forks->begun = 1;
  do { /* (where the CPUs are busy, this one may have had no place) */
    EXPECT(status_of(forks->child()) == 0);
  } while (!is_free(0));
  return NULL;
}

/* Mapped before the threads' records, and so copied before them: a fork takes a while. */
static void map_much(void) {
  const size_t bytes = 64 << 20;
  char *much = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT(much != MAP_FAILED && madvise(much, bytes, MADV_NOHUGEPAGE) == 0);
  memset(much, 1, bytes);
}

static void fork_while(void (*done_to)(pthread_t)) {
  pid_t (*const children[])(void) = {forked_child, bare_child, vforked_child};
  map_much();
  for (int i = 0; i < 300; i++) {
    struct forks forks = {.child = children[i % 3]};
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, fork_until_free, &forks) == 0);
    while (!forks.begun) nap();
    const struct timespec pause = {0, i * 5000}; /* up to 1.5 ms, as a fork takes */
    nanosleep(&pause, NULL);
    done_to(thread);
    EXPECT(pthread_join(thread, NULL) == 0);
  }
}

static void set_free(pthread_t thread) {
  (void)thread;
  too_many();
}

static void give_all(pthread_t thread) { EXPECT(pthread_setaffinity_np(thread, sizeof initial, &initial) == 0); }

static void freed_in_fork(void) { fork_while(set_free); }
static void set_in_fork(void) { fork_while(give_all); }

/* A child of fork begins anew: all CPUs for its own threads, whoever forked. */
static void fork_and_place(struct worker *worker) {
  (void)worker;
  pid_t child = fork();
  if (child == 0) {
    EXPECT(is_free(0));
    own_cpu();
    too_many();
    EXPECT(is_free(0));
    _exit(0);
  }
  EXPECT(status_of(child) == 0);
  EXPECT(is_placed(0));
}

static void forked_threads(void) {
  for (int i = 0; i < 10; i++) {
    struct worker worker = {.first = fork_and_place};
    begin(&worker);
    end(&worker);
  }
}

/* A thread that lives on in destructors of thread-specific data: what it starts there is as free as ever, and so is
 * the thread itself once it has had a child. */
static pthread_key_t late_key;
static int late_rounds;

static void late(void *value) {
  if (++late_rounds < 3) {
    pthread_setspecific(late_key, value);
    return;
  }
  EXPECT(shows_initial(0, pthread_self()) && shows_initial(gettid(), pthread_self()));
  expect_all_children_free();
  struct worker workers[1] = {{0}};
  begin(&workers[0]);
  EXPECT(is_placed(workers[0].tid));
  EXPECT(shows_initial(0, pthread_self()) && shows_initial(gettid(), pthread_self()));
  end(&workers[0]);
}

static void *live_on(void *value) {
  EXPECT(is_placed(0));
  EXPECT(pthread_setspecific(late_key, value) == 0);
  return NULL;
}

static void die_late(void (*how)(void *)) {
  pthread_t thread;
  late_rounds = 0;
  EXPECT(pthread_key_create(&late_key, how) == 0);
  EXPECT(pthread_create(&thread, NULL, live_on, &late_key) == 0 && pthread_join(thread, NULL) == 0);
  EXPECT(late_rounds == 3 && pthread_key_delete(late_key) == 0);
}

static void late_destructor(void) { die_late(late); }

/* The mask that such a thread sets for itself there is the program's, by whichever of its numbers: shown, and handed on. */
static int set_by_number(const cpu_set_t *mask) { return sched_setaffinity(gettid(), sizeof *mask, mask); }
static int set_by_syscall_and_number(const cpu_set_t *mask) {
  return (int)syscall(SYS_sched_setaffinity, gettid(), sizeof *mask, mask);
}

static void set_late(void *value) {
  if (++late_rounds < 3) {
    pthread_setspecific(late_key, value);
    return;
  }
  set_own(NULL);
}

static void set_in_destructor(void) {
  static int (*const kWays[])(const cpu_set_t *) = {set_by_libc, set_by_number, set_by_pthread, set_by_syscall, set_by_syscall_and_number};
  for (size_t way = 0; way < sizeof kWays / sizeof kWays[0]; way++) {
    set_own_mask = kWays[way];
    die_late(set_late);
  }
}

static void spin(struct worker *worker) {
  worker->tid = (pid_t)syscall(SYS_gettid);
  for (volatile long i = 0; !worker->stop; i = i + 1) {
  }
}

/* A process that always runs, on one CPU. */
static pid_t begin_hog(int cpu) {
  pid_t hog = fork();
  if (hog == 0) {
    const cpu_set_t mask = only(cpu);
    syscall(SYS_sched_setaffinity, 0, sizeof mask, &mask);
    alarm(600);
    for (volatile int i = 0;; i = i + 1) {
    }
  }
  return hog;
}

static void end_hog(pid_t hog) {
  kill(hog, SIGKILL);
  waitpid(hog, NULL, 0);
}

/* It takes half of the thread's CPU: the thread is set free. Looked for when threads are created. */
static void shared_cpu(void) {
  struct worker worker = {.first = spin};
  begin(&worker);
  const int cpu = cpu_of(worker.tid);
  EXPECT(cpu >= 0);
  const pid_t hog = begin_hog(cpu);
  for (int i = 0; i < 600 && !is_free(worker.tid); i++) {
    nanosleep(&(struct timespec){0, 100000000}, NULL);
    struct worker other = {0};
    begin(&other);
    end(&other);
  }
  EXPECT(is_free(worker.tid));
  end_hog(hog);
  end(&worker);
}

enum { kMostLooks = 60000 }; /* 10 ms apart: as long as a hang is waited for elsewhere */

/* Whether a thread is in a futex call without a timeout: 1 or 0; -1 where the kernel does not say. Without stdio: whoever allocates all
 * the time gives the balance thread work. */
static int waits_for_ever(pid_t tid) {
  long number = 0;
  unsigned long timeout = 1;
  const int told = system_call_of(tid, &number, &timeout);
  return told <= 0 ? told : number == SYS_futex && timeout == 0;
}

static int eventually_waits(pid_t tid) {
  for (int i = 0; i < kMostLooks && waits_for_ever(tid) == 0; i++) nanosleep(&(struct timespec){0, 10000000}, NULL);
  return waits_for_ever(tid);
}

/* When no thread has a place the balance thread sleeps until it is woken; and it is when one has, so a shared CPU is found without
 * that threads are created. */
static void balance_rests(void) {
  struct worker worker = {0};
  begin(&worker);
  EXPECT(is_placed(worker.tid));
  pid_t balance = 0;
  for (int i = 0; i < kMostLooks && (balance = balance_thread()) == 0; i++) nap(); /* it gives itself its name */
  EXPECT(balance != 0);
  end(&worker);
  const int waits = eventually_waits(balance);
  if (waits < 0) _exit(77);
  EXPECT(waits == 1);
  worker.first = spin;
  const int cpu = begin_placed(&worker);
  const pid_t hog = begin_hog(cpu);
  for (int i = 0; i < kMostLooks && !is_free(worker.tid); i++) nanosleep(&(struct timespec){0, 10000000}, NULL);
  EXPECT(is_free(worker.tid));
  end_hog(hog);
  EXPECT(eventually_waits(balance) == 1);
  end(&worker);
}

/* A thread may name itself where nobody is asked, and long after its name was first read. It is found out in the background; where there
 * is none, when threads are created. */
static atomic_int to_be_named;

static void name_itself(struct worker *worker) {
  worker->tid = (pid_t)syscall(SYS_gettid);
  while (!to_be_named) nap();
  EXPECT(prctl(PR_SET_NAME, "late-worker") == 0);
}

static void wait_for_look(int creates) {
  nanosleep(&(struct timespec){0, 100000000}, NULL);
  struct worker other = {0};
  if (!creates) return;
  begin(&other);
  end(&other);
}

static void name_late(int creates) {
  struct worker worker = {.first = name_itself};
  struct worker same = {0};
  begin(&worker);
  begin(&same);
  for (int i = 0; i < 25; i++) wait_for_look(creates);
  EXPECT(cpu_of(worker.tid) >= 0);
  to_be_named = 1;
  for (int i = 0; i < kMostLooks && !is_free(worker.tid); i++) wait_for_look(creates);
  EXPECT(is_free(worker.tid) && cpu_of(same.tid) >= 0);
  end(&worker);
  end(&same);
}

static void named_late(void) { name_late(0); }
static void named_late_sync(void) { name_late(1); }

/* Every second block stays, so that no pages become free, which would have the balance thread look again too. */
static void fill_caches(struct worker *worker) {
  (void)worker;
  enum { kRounds = 60, kBlocks = 500 };
  static void *volatile blocks[kRounds][kBlocks];
  for (int round = 0; round < kRounds; round++) {
    for (int i = 0; i < kBlocks; i++) blocks[round][i] = malloc(64);
    for (int i = 0; i < kBlocks; i += 2) free(blocks[round][i]);
    nanosleep(&(struct timespec){0, 10000000}, NULL);
  }
}

/* It does not rest before the caches that nobody uses any more are emptied; with or without places. */
static void caches_emptied(void) {
  struct worker worker = {.first = fill_caches};
  begin(&worker);
  for (int i = 0; i < kMostLooks && mallinfo2().fsmblks != 0; i++) nanosleep(&(struct timespec){0, 10000000}, NULL);
  EXPECT(mallinfo2().fsmblks == 0);
  end(&worker);
}

static atomic_int storm_over;

static void *storm_asker(void *argument) {
  (void)argument;
  while (!storm_over) {
    cpu_set_t mask;
    EXPECT(sched_getaffinity(0, sizeof mask, &mask) == 0 && CPU_EQUAL(&mask, &initial));
  }
  return NULL;
}

static void storm_signal(int number) {
  (void)number;
  cpu_set_t mask;
  const int saved_errno = errno;
  EXPECT(sched_getaffinity(0, sizeof mask, &mask) == 0 && CPU_EQUAL(&mask, &initial));
  errno = saved_errno;
}

static void *storm_creator(void *argument) {
  for (int i = 0; i < 300; i++) {
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, leave, (void *)(long)(i % 3)) == 0 && pthread_join(thread, NULL) == 0);
    if (i % 10 != 0) continue;
    pid_t child = fork();
    if (child == 0) _exit(is_free(0) ? 0 : 1);
    EXPECT(status_of(child) == 0);
    EXPECT(posix_spawn(&child, child_argv[0], NULL, NULL, child_argv, environ) == 0);
    EXPECT(status_of(child) == 0);
  }
  return argument;
}

static int all_get_cpus(void) {
  struct worker *workers = calloc((size_t)nr_cpus, sizeof *workers);
  int placed = 0;
  for (int i = 0; i < nr_cpus; i++) begin(&workers[i]);
  for (int i = 0; i < nr_cpus; i++) placed += cpu_of(workers[i].tid) >= 0;
  for (int i = 0; i < nr_cpus; i++) end(&workers[i]);
  free(workers);
  return placed == nr_cpus;
}

/* Threads begin, end, fork, spawn and ask, and are set free and placed meanwhile, under signals. */
static void storm(void) {
  struct sigaction action = {.sa_handler = storm_signal, .sa_flags = SA_RESTART};
  EXPECT(sigaction(SIGALRM, &action, NULL) == 0);
  const struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
  const struct itimerspec often = {{0, 1000000}, {0, 1000000}};
  timer_t timer;
  EXPECT(timer_create(CLOCK_MONOTONIC, (struct sigevent *)&event, &timer) == 0);
  EXPECT(timer_settime(timer, 0, &often, NULL) == 0);
  pthread_t threads[4];
  for (int i = 0; i < 4; i++)
    EXPECT(pthread_create(&threads[i], NULL, i == 0 ? storm_asker : storm_creator, NULL) == 0);
  for (int i = 1; i < 4; i++) EXPECT(pthread_join(threads[i], NULL) == 0);
  storm_over = 1;
  EXPECT(pthread_join(threads[0], NULL) == 0);
  timer_delete(timer);
  EXPECT(is_free(0));
  /* A CPU for which one of them waited long is not given out for 10 seconds. */
  for (int i = 0; i < 600 && !all_get_cpus(); i++) nanosleep(&(struct timespec){0, 100000000}, NULL);
  own_cpu();
}

static void list(void) {
  struct worker workers[4] = {{0}, {0}, {0}, {0}};
  for (int i = 0; i < 4; i++) begin(&workers[i]);
  for (int i = 0; i < 4; i++) EXPECT(cpu_of(workers[i].tid) == (i % 2 == 0 ? 1 : 0));
  for (int i = 0; i < 4; i++) end(&workers[i]);
}

/* ---- nodes and cores ---- */

/* What is known of the CPUs that we may use: under a preload that sees three nodes (PIN_TEST_THREE_NODES, ../fake_nodes.cc) what that
 * says, else what sysfs does. */
static int node_of[CPU_SETSIZE];
static int rank_of[CPU_SETSIZE]; /* how many of its core's CPUs have lower numbers */

static int read_node(int cpu) {
  int node = 0;
  char path[64];
  snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d", cpu);
  DIR *links = opendir(path);
  for (struct dirent *link; links != NULL && (link = readdir(links)) != NULL;) {
    if (sscanf(link->d_name, "node%d", &node) == 1) break;
  }
  if (links != NULL) closedir(links);
  return node;
}

static int read_rank(int cpu) {
  char path[128];
  snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
  FILE *file = fopen(path, "r");
  int rank = 0;
  for (int first; file != NULL && fscanf(file, "%d", &first) == 1;) {
    int last = first;
    int next = fgetc(file);
    if (next == '-') {
      EXPECT(fscanf(file, "%d", &last) == 1);
      next = fgetc(file);
    }
    for (int sibling = first; sibling <= last && sibling < cpu; sibling++) rank += CPU_ISSET(sibling, &initial) != 0;
    if (next != ',') break;
  }
  if (file != NULL) fclose(file);
  return rank;
}

static void look_at_machine(void) {
  const int three_nodes = getenv("PIN_TEST_THREE_NODES") != NULL;
  for (int i = 0; i < nr_cpus; i++) {
    const int cpu = nth_cpu(i);
    node_of[cpu] = three_nodes ? 2 - cpu % 3 : read_node(cpu);
    rank_of[cpu] = three_nodes ? 0 : read_rank(cpu);
  }
}

/* Physical cores come before their siblings: as many threads as there are cores share none. */
static void cores_first(void) {
  look_at_machine();
  int nr_cores = 0;
  for (int i = 0; i < nr_cpus; i++) nr_cores += rank_of[nth_cpu(i)] == 0;
  if (nr_cores == nr_cpus) {
    EXPECT(getenv("PIN_TEST_SIBLINGS") == NULL); /* who knows that there are some */
    _exit(77);
  }
  struct worker workers[kMostCpus] = {{0}};
  int cpus[kMostCpus];
  int nr_placed = 0;
  for (int i = 0; i < nr_cpus; i++) begin(&workers[i]);
  for (int i = 0; i < nr_cpus; i++) {
    cpus[i] = cpu_of(workers[i].tid);
    EXPECT(cpus[i] >= 0 || waited(workers[i].tid));
    nr_placed += cpus[i] >= 0;
  }
  /* (The CPU of one that was set free is not given out for a while, and the others come earlier.) */
  for (int i = 0; i < nr_cpus && nr_placed == nr_cpus; i++) EXPECT((rank_of[cpus[i]] == 0) == (i < nr_cores));
  for (int i = 0; i < nr_cpus; i++) end(&workers[i]);
}

/* Twice as many threads as CPUs: each CPU has two, and the second time they come in the same order. Fills in that order. */
static void read_order(int *order) {
  look_at_machine();
  struct worker *workers = calloc((size_t)nr_cpus * 2, sizeof *workers);
  cpu_set_t seen;
  CPU_ZERO(&seen);
  for (int i = 0; i < 2 * nr_cpus; i++) begin(&workers[i]);
  for (int i = 0; i < 2 * nr_cpus; i++) {
    const int cpu = cpu_of(workers[i].tid);
    EXPECT(cpu >= 0 && CPU_ISSET(cpu, &initial));
    EXPECT(i < nr_cpus ? !CPU_ISSET(cpu, &seen) : order[i - nr_cpus] == cpu);
    CPU_SET(cpu, &seen);
    if (i < nr_cpus) order[i] = cpu;
    EXPECT(shows_initial(workers[i].tid, workers[i].thread));
  }
  for (int i = 0; i < 2 * nr_cpus; i++) end(&workers[i]);
  free(workers);
}

/* Node by node; in a node its cores before their siblings. */
static void compact(void) {
  int order[kMostCpus];
  read_order(order);
  for (int i = 1; i < nr_cpus; i++) {
    const int before = order[i - 1], cpu = order[i];
    EXPECT(node_of[before] < node_of[cpu] || (node_of[before] == node_of[cpu] && rank_of[before] <= rank_of[cpu]));
  }
}

/* A CPU of each node in turn, the nodes by number; each node's cores before their siblings. */
static void scatter(void) {
  int order[kMostCpus];
  int turn_of[kMostCpus] = {0}; /* how many of its node had come before */
  read_order(order);
  for (int i = 1; i < nr_cpus; i++) {
    for (int k = 0; k < i; k++) {
      if (node_of[order[k]] != node_of[order[i]]) continue;
      EXPECT(rank_of[order[k]] <= rank_of[order[i]]);
      turn_of[i]++;
    }
    EXPECT(turn_of[i - 1] < turn_of[i] || (turn_of[i - 1] == turn_of[i] && node_of[order[i - 1]] < node_of[order[i]]));
  }
}

/* The CPUs of ours that the node has. */
static cpu_set_t cpus_of(int wanted) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  for (int i = 0; i < nr_cpus; i++) {
    if (node_of[nth_cpu(i)] == wanted) CPU_SET(nth_cpu(i), &mask);
  }
  return mask;
}

/* Each thread has all of our CPUs of one node, and no others; the nodes come in turn, by number. */
static void node(void) {
  look_at_machine();
  cpu_set_t expected[kMostCpus];
  int nr_nodes = 0;
  for (int number = 0; number < CPU_SETSIZE; number++) {
    const cpu_set_t mask = cpus_of(number);
    if (CPU_COUNT(&mask) != 0) expected[nr_nodes++] = mask;
  }
  struct worker workers[2 * kMostCpus + 1] = {{0}};
  const int count = 2 * nr_nodes + 1;
  for (int i = 0; i < count; i++) begin(&workers[i]);
  for (int i = 0; i < count; i++) {
    const cpu_set_t mask = true_mask(workers[i].tid);
    EXPECT(CPU_EQUAL(&mask, &expected[i % nr_nodes]) && CPU_EQUAL(&workers[i].at_start, &mask));
    EXPECT(shows_initial(workers[i].tid, workers[i].thread));
  }
  for (int i = 0; i < count; i++) end(&workers[i]);
}

static void none(void) {
  stays = 1;
  struct worker worker = {.first = NULL};
  begin(&worker);
  EXPECT(is_free(worker.tid));
  EXPECT(shows_initial(worker.tid, worker.thread));
  expect_all_children_free();
  end(&worker);
}

static void verbose(void) {
  struct worker worker = {0};
  begin(&worker);
  end(&worker);
}

static const struct {
  const char *name;
  void (*check)(void);
} kPromises[] = {
    {"own_cpu", own_cpu},
    {"too_many", too_many},
    {"one_after_too_many", one_after_too_many},
    {"any_first_core", any_first_core},
    {"main_is_free", main_is_free},
    {"libc_hides", libc_hides},
    {"system_calls", system_calls},
    {"threads_of_threads", threads_of_threads},
    {"other_process", other_process},
    {"attribute", attribute},
    {"set_at_once", set_at_once},
    {"set_later", set_later},
    {"set_by_system_call", set_by_system_call},
    {"set_the_same", set_the_same},
    {"set_in_child", set_in_child},
    {"set_by_creator", set_by_creator},
    {"failure", failure},
    {"ends", ends},
    {"c11", c11},
    {"default_attribute", default_attribute},
    {"named", named},
    {"skipped", skipped},
    {"children", children},
    {"exec", exec},
    {"exec_fails", exec_fails},
    {"exec_in_bare_child", exec_in_bare_child},
    {"freed_in_fork", freed_in_fork},
    {"set_in_fork", set_in_fork},
    {"forked_threads", forked_threads},
    {"late_destructor", late_destructor},
    {"set_in_destructor", set_in_destructor},
    {"vfork_child_asks", vfork_child_asks},
    {"shared_cpu", shared_cpu},
    {"balance_rests", balance_rests},
    {"named_late", named_late},
    {"named_late_sync", named_late_sync},
    {"caches_emptied", caches_emptied},
    {"storm", storm},
    {"list", list},
    {"cores_first", cores_first},
    {"compact", compact},
    {"scatter", scatter},
    {"node", node},
    {"none", none},
    {"verbose", verbose},
};

/* Runs the promise under the preload. What the preload says on stderr is checked here: nothing, or what is asked for. */
static int run_preloaded(const char *name) {
  char said[4096];
  size_t len = 0;
  int ends_of_pipe[2];
  EXPECT(pipe(ends_of_pipe) == 0);
  const pid_t child = fork();
  if (child == 0) {
    setenv("LD_PRELOAD", getenv("PIN_TEST_PRELOAD"), 1);
    setenv("PIN_TEST_INSIDE", "1", 1);
    dup2(ends_of_pipe[1], STDERR_FILENO);
    close(ends_of_pipe[0]);
    close(ends_of_pipe[1]);
    execl("/proc/self/exe", "pin_promises", name, (char *)NULL);
    _exit(127);
  }
  close(ends_of_pipe[1]);
  for (ssize_t got; len < sizeof said - 1 && (got = read(ends_of_pipe[0], said + len, sizeof said - 1 - len)) > 0;)
    len += (size_t)got;
  said[len] = 0;
  close(ends_of_pipe[0]);
  const int status = status_of(child);
  fprintf(stderr, "%s", said);
  if (strcmp(name, "list_refused") == 0) {
    EXPECT(status == 1);
    EXPECT(strstr(said, "pin:list: expected CPUs that the process may use") != NULL && strstr(said, "found 8191\n") != NULL);
    EXPECT(strchr(said, '\n') == said + len - 1);
    return 0;
  }
  if (strcmp(name, "verbose") == 0) {
    EXPECT(strstr(said, "libpercpu: pin: thread ") != NULL && strstr(said, ", number 1, on CPU ") != NULL);
  } else {
    EXPECT(len == 0);
  }
  return status;
}

/* The process's own from now on: runs of neighbouring CPUs, from all over the machine, so that there are siblings and nodes among them. */
static void take_some_cpus(void) {
  cpu_set_t some;
  CPU_ZERO(&some);
  for (int i = 0; i < kMostCpus; i++) CPU_SET(nth_cpu(i / kRunCpus * nr_cpus / kRuns + i % kRunCpus), &some);
  EXPECT(CPU_COUNT(&some) == kMostCpus && sched_setaffinity(0, sizeof some, &some) == 0);
  initial = some;
  nr_cpus = kMostCpus;
}

int main(int argc, char **argv) {
  initial = true_mask(0);
  nr_cpus = CPU_COUNT(&initial);
  write_mask(mask_text, &initial);
  if (argc > 1 && strcmp(argv[1], "first_cpu") == 0) return first_cpu();
  if (argc == 3 && strcmp(argv[1], "child_says") == 0) return strcmp(argv[2], mask_text) == 0 ? 0 : 1;
  EXPECT(argc == 2);
  if (nr_cpus < 2) return 77;
  if (nr_cpus > kMostCpus) take_some_cpus();
  if (strcmp(argv[1], "list") == 0 && !(CPU_ISSET(0, &initial) && CPU_ISSET(1, &initial))) return 77;
  if (getenv("PIN_TEST_INSIDE") == NULL) return run_preloaded(argv[1]);
  char path[256] = {0};
  EXPECT(readlink("/proc/self/exe", path, sizeof path - 1) > 0);
  child_argv[0] = own_mask_argv[0] = path;
  EXPECT(snprintf(command, sizeof command, "exec \"$PIN_TEST_SELF\" child_says %s", mask_text) < (int)sizeof command);
  setenv("PIN_TEST_SELF", path, 1);
  for (size_t i = 0; i < sizeof kPromises / sizeof kPromises[0]; i++) {
    if (strcmp(argv[1], kPromises[i].name) != 0) continue;
    kPromises[i].check();
    return 0;
  }
  fprintf(stderr, "no such promise: %s\n", argv[1]);
  return 2;
}
