/* SPDX-License-Identifier: MIT
 *
 * percpu-run [options] program [arguments]: runs a program under libpercpu's preload.
 *
 * Sets LD_PRELOAD (in front of what is there) and PERCPU_CONF (behind what is there: later items count), and becomes the
 * program. Exit statuses: 2 bad usage; as with env and nice 125 percpu-run itself failed, 126 the program cannot be
 * run, 127 it was not found; else the program's own.
 *
 * The library is the one named by --library or PERCPU_PRELOAD; else the one beside this program in a build tree
 * (../preload); else the one in the library directory that was chosen when it was installed.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define LIBRARY "libpercpu_preload.so"

enum { kUsage = 2, kFailed = 125, kCannotRun = 126, kNotFound = 127 };

static const char usage[] =
    "usage: percpu-run [options] program [arguments]\n"
    "\n"
    "Runs a program with malloc and thread placement by libpercpu.\n"
    "\n"
    "  --pin POLICY        where its threads run: auto (by default), none, compact, scatter, node, list:0,2-5\n"
    "  --stats WHEN        print what the heap holds: none (by default), exit, json (at exit, as JSON), signal (on SIGUSR2)\n"
    "  --check WHAT        usual (by default): what costs next to nothing; full: every double free, writes behind blocks and\n"
    "                      after free, slow; off: free() trusts what it is given\n"
    "  --conf KEY:VALUE,.. anything else that PERCPU_CONF takes (percpu-run --conf help:yes true lists it)\n"
    "  --library PATH      the preload library to use, instead of the one that came with percpu-run (a name without a\n"
    "                      slash is looked for as in LD_PRELOAD)\n"
    "  --help, --version\n"
    "\n"
    "PERCPU_CONF     configuration for the preload; options win over it\n"
    "PERCPU_PRELOAD  the preload library to use, where --library names none\n"
    "\n"
    "A value that --pin, --stats, --check or --conf cannot take is told on stderr, and the default is used. A list of --pin\n"
    "with a CPU that the program may not use ends it with status 1.\n"
    "\n"
    "Exit status: 2 wrong usage, 125 percpu-run failed (no such library), 126 the program cannot be run, 127 it was not\n"
    "found; else the program's own.\n";

/* "percpu-run: ..." and the end. */
static void __attribute__((noreturn, format(printf, 2, 3))) fail(int status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  fputs("percpu-run: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  exit(status);
}

static char __attribute__((format(printf, 1, 2))) *text(const char *format, ...) {
  char *result = NULL;
  va_list args;
  va_start(args, format);
  if (vasprintf(&result, format, args) < 0) fail(kFailed, "no memory");
  va_end(args);
  return result;
}

static void add_conf(char **conf, const char *key, const char *value) {
  char *item = key != NULL ? text("%s:%s", key, value) : text("%s", value);
  *conf = *conf != NULL && **conf != 0 ? text("%s,%s", *conf, item) : item;
}

static int is_elf(const char *path) {
  unsigned char magic[SELFMAG];
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  const int good = fd >= 0 && read(fd, magic, sizeof magic) == (ssize_t)sizeof magic && memcmp(magic, ELFMAG, SELFMAG) == 0;
  if (fd >= 0) close(fd);
  return good;
}

static char *find_library(void) {
  char self[PATH_MAX];
  const ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
  if (len > 0) {
    self[len] = 0;
    char *slash = strrchr(self, '/');
    if (slash != NULL) {
      *slash = 0;
      char *built = text("%s/../preload/" LIBRARY, self);
      char *real = realpath(built, NULL);
      if (real != NULL) return real;
      /* An installed tree that was moved as a whole. */
      char *moved = text("%s/" PERCPU_LIBDIR_FROM_BINDIR "/" LIBRARY, self);
      real = realpath(moved, NULL);
      if (real != NULL) return real;
    }
  }
  return text("%s/" LIBRARY, PERCPU_LIBDIR);
}

/* Says why the preload would be ignored, where the file tells. */
static void warn_of(const char *program) {
  const char *path = program;
  char *found = NULL;
  if (strchr(program, '/') == NULL) {
    const char *list = getenv("PATH");
    if (list == NULL) return;
    for (char *copy = text("%s", list), *save = NULL, *dir = strtok_r(copy, ":", &save); dir != NULL && found == NULL;
         dir = strtok_r(NULL, ":", &save)) {
      char *candidate = text("%s/%s", dir, program);
      if (access(candidate, X_OK) == 0) found = candidate;
    }
    if (found == NULL) return;
    path = found;
  }
  struct stat file;
  if (stat(path, &file) == 0 && geteuid() != 0 && (file.st_mode & (S_ISUID | S_ISGID)) != 0)
    fprintf(stderr, "percpu-run: %s is setuid or setgid: it ignores the preload\n", path);
  if (geteuid() != 0 && getxattr(path, "security.capability", NULL, 0) > 0)
    fprintf(stderr, "percpu-run: %s has capabilities of its own: it ignores the preload\n", path);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  Elf64_Ehdr head;
  if (read(fd, &head, sizeof head) == (ssize_t)sizeof head && memcmp(head.e_ident, ELFMAG, SELFMAG) == 0 &&
      head.e_ident[EI_CLASS] == ELFCLASS64 && head.e_phentsize == sizeof(Elf64_Phdr)) {
    int dynamic = 0;
    for (unsigned i = 0; i < head.e_phnum; i++) {
      Elf64_Phdr part;
      if (pread(fd, &part, sizeof part, (off_t)(head.e_phoff + i * sizeof part)) != (ssize_t)sizeof part) break;
      if (part.p_type == PT_INTERP) dynamic = 1;
    }
    /* The dynamic linker, run as a program, loads another one and the preload. */
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    if (strncmp(name, "ld-", 3) == 0 || strncmp(name, "ld.so", 5) == 0) dynamic = 1;
    if (!dynamic) fprintf(stderr, "percpu-run: %s is linked statically: it ignores the preload\n", path);
  }
  close(fd);
}

int main(int argc, char **argv) {
  enum { kPin = 256, kStats, kCheck, kConf, kLibrary, kHelp, kVersion };
  static const struct option options[] = {
      {"pin", required_argument, NULL, kPin},         {"stats", required_argument, NULL, kStats},
      {"check", required_argument, NULL, kCheck},     {"conf", required_argument, NULL, kConf},
      {"library", required_argument, NULL, kLibrary}, {"help", no_argument, NULL, kHelp},
      {"version", no_argument, NULL, kVersion},       {NULL, 0, NULL, 0},
  };
  char *conf = getenv("PERCPU_CONF");
  char *library = getenv("PERCPU_PRELOAD");
  int option;
  opterr = 0;
  while ((option = getopt_long(argc, argv, "+:", options, NULL)) != -1) {
    switch (option) {
      case kPin: add_conf(&conf, "pin", optarg); break;
      case kStats: add_conf(&conf, "stats", optarg); break;
      case kCheck: add_conf(&conf, "check", optarg); break;
      case kConf: add_conf(&conf, NULL, optarg); break;
      case kLibrary:
        if (*optarg == 0) fail(kUsage, "--library: expected a path or a name, found an empty text");
        library = optarg;
        break;
      case kHelp: fputs(usage, stdout); return fflush(stdout) == 0 ? 0 : kFailed;
      case kVersion: puts("percpu-run " PERCPU_VERSION_TEXT); return fflush(stdout) == 0 ? 0 : kFailed;
      case ':': fail(kUsage, "%s: expected a value behind it, found none (see --help)", argv[optind - 1]);
      default: fail(kUsage, "%s: expected an option of --help, or the program", argv[optind - 1]);
    }
  }
  if (optind >= argc) fail(kUsage, "expected a program to run, found none (see --help)");
  if (library == NULL || *library == 0) library = find_library();
  /* A path holds for children that change their directory, too; a bare name is the dynamic linker's to find, as in LD_PRELOAD. */
  if (strchr(library, '/') != NULL) {
    char *real = realpath(library, NULL);
    if (real == NULL || access(real, R_OK) != 0) fail(kFailed, "the preload library %s: %s", library, strerror(errno));
    if (!is_elf(real)) fail(kFailed, "the preload library %s: expected a shared library, found something else", library);
    library = real;
  }
  if (strpbrk(library, ": ") != NULL)
    fail(kFailed, "the preload library %s: expected a path without colons and spaces, which LD_PRELOAD cannot hold", library);
  const char *others = getenv("LD_PRELOAD");
  char *preload = others != NULL && *others != 0 ? text("%s:%s", library, others) : library;
  if (setenv("LD_PRELOAD", preload, 1) != 0 || (conf != NULL && setenv("PERCPU_CONF", conf, 1) != 0))
    fail(kFailed, "no memory");
  warn_of(argv[optind]);
  execvp(argv[optind], argv + optind);
  const int error = errno;
  fail(error == ENOENT ? kNotFound : kCannotRun, "%s: %s", argv[optind], strerror(error));
}
