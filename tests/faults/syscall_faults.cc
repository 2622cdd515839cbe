// SPDX-License-Identifier: MIT
//
// Makes the n-th system call fail that a program's copy of libpercpu or of the preload makes, for n from 1 until a run ends
// without reaching n. Nothing of the libraries is changed for it: the program runs under ptrace, with all its threads and
// children.
//
//   syscall_faults [--first N] [--step N] [--errors one|all] LIBRARY... -- PROGRAM [ARGUMENT...]
//
// A system call is a library's when one of the return addresses that lie on top of the stack (or, on arm64, in the link register) is in
// LIBRARY (the end of a mapped file's name: "libpercpu_preload.so"). What the program does after its first getppid() is left alone: there
// it sees whether everything is in order again, and by FAULTS_HELD whether it holds no more than in a run without faults, which comes
// first. It must exit with status 0; a signal, any other status, or kRunSeconds without an end is a finding. (kHoldsMore is none where the
// system did not take memory back.)
//
// Each call fails as it can fail on a real system (kErrors); --errors all tries every errno of its row, else the first one.
// A call that cannot fail, or whose failure nobody could survive, is passed over (kPassedOver), and close, which closes the
// file even where it fails, as a call that is left out does not; so are those that liburcu
// makes for the library, since it ends the program itself where its membarrier or its mmap fails. A call of which neither list knows is
// a finding.
#include <elf.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr unsigned kRunSeconds = 600;
constexpr size_t kStackWords = 96;
constexpr int kMostErrors = 3;

struct CallErrors {
  long number;
  const char* name;
  int errors[kMostErrors];
};

constexpr CallErrors kErrors[] = {
    {SYS_mmap, "mmap", {ENOMEM, EAGAIN, 0}},
    {SYS_munmap, "munmap", {ENOMEM, 0, 0}},
    {SYS_mremap, "mremap", {ENOMEM, EAGAIN, 0}},
    {SYS_mprotect, "mprotect", {ENOMEM, 0, 0}},
    {SYS_munlock, "munlock", {ENOMEM, EPERM, 0}},
    {SYS_madvise, "madvise", {ENOMEM, EINVAL, EAGAIN}},
    {SYS_mincore, "mincore", {ENOMEM, EAGAIN, 0}},
    {SYS_mbind, "mbind", {EPERM, ENOSYS, ENOMEM}},
    {SYS_set_mempolicy, "set_mempolicy", {EPERM, ENOSYS, 0}},
    {SYS_get_mempolicy, "get_mempolicy", {EPERM, ENOSYS, 0}},
    {SYS_move_pages, "move_pages", {EPERM, ENOSYS, 0}},
    {SYS_membarrier, "membarrier", {EPERM, ENOSYS, EINVAL}},
    {SYS_sched_getaffinity, "sched_getaffinity", {EPERM, ENOSYS, 0}},
    {SYS_sched_setaffinity, "sched_setaffinity", {EPERM, EINVAL, 0}},
#ifdef SYS_open
    {SYS_open, "open", {ENOENT, EMFILE, EACCES}},
#endif
    {SYS_openat, "openat", {ENOENT, EMFILE, EACCES}},
    {SYS_read, "read", {EIO, EINTR, 0}},
    {SYS_newfstatat, "newfstatat", {EACCES, ENOMEM, 0}},
    {SYS_fstat, "fstat", {EACCES, ENOMEM, 0}},
    {SYS_sched_getscheduler, "sched_getscheduler", {EPERM, ENOSYS, 0}},
    {SYS_sched_getparam, "sched_getparam", {EPERM, ENOSYS, 0}},
    {SYS_futex, "futex", {EAGAIN, EINTR, 0}},  // waiting only: waking does not fail
    {SYS_clone, "clone", {EAGAIN, ENOMEM, 0}},
    {SYS_clone3, "clone3", {EAGAIN, ENOMEM, ENOSYS}},
    {SYS_prctl, "prctl", {EINVAL, 0, 0}},
    {SYS_prlimit64, "prlimit64", {EPERM, ENOSYS, 0}},
    {SYS_rseq, "rseq", {ENOSYS, EINVAL, EFAULT}},  // EPERM and EBUSY are the answers to a registered thread
    {SYS_write, "write", {EIO, EAGAIN, 0}},
    {SYS_writev, "writev", {EIO, EAGAIN, 0}},
};

// (Not all of them are the libraries' own: libc makes some in between, in fork() and in threads that begin.)
constexpr int kHoldsMore = 3;  // the program's status (scenario.h)

constexpr long kPassedOver[] = {SYS_close, SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_exit, SYS_exit_group, SYS_futex /* that wakes */,
                                SYS_getpid, SYS_gettid, SYS_wait4, SYS_set_robust_list, SYS_clock_nanosleep};

// ---- the registers of a thread that was stopped at a system call

bool get_registers(pid_t task, user_regs_struct* registers) {
  iovec part{registers, sizeof *registers};
  return ptrace(PTRACE_GETREGSET, task, reinterpret_cast<void*>(NT_PRSTATUS), &part) == 0;
}
void set_registers(pid_t task, user_regs_struct* registers) {
  iovec part{registers, sizeof *registers};
  ptrace(PTRACE_SETREGSET, task, reinterpret_cast<void*>(NT_PRSTATUS), &part);
}

struct Call {
  long number;
  uint64_t arguments[3];
  uint64_t at, stack;
  uint64_t link;  // where the innermost function returns to; 0: that is on the stack
};

#if defined(__x86_64__)
Call call_of(const user_regs_struct& registers) {
  return {static_cast<long>(registers.orig_rax), {registers.rdi, registers.rsi, registers.rdx}, registers.rip, registers.rsp, 0};
}
// The kernel is to do nothing.
void skip_call(pid_t task, user_regs_struct* registers) {
  registers->orig_rax = static_cast<unsigned long long>(-1);
  set_registers(task, registers);
}
void set_result(pid_t task, user_regs_struct* registers, long result) {
  registers->rax = static_cast<unsigned long long>(result);
  set_registers(task, registers);
}
#elif defined(__aarch64__)
Call call_of(const user_regs_struct& registers) {
  return {static_cast<long>(registers.regs[8]), {registers.regs[0], registers.regs[1], registers.regs[2]}, registers.pc, registers.sp,
          registers.regs[30]};
}
void skip_call(pid_t task, user_regs_struct*) {
  int none = -1;
  iovec part{&none, sizeof none};
  ptrace(PTRACE_SETREGSET, task, reinterpret_cast<void*>(NT_ARM_SYSTEM_CALL), &part);
}
void set_result(pid_t task, user_regs_struct* registers, long result) {
  registers->regs[0] = static_cast<unsigned long long>(result);
  set_registers(task, registers);
}
#else
#error "the registers of x86-64 and arm64 alone are known"
#endif

// Null: the call cannot fail.
const CallErrors* errors_of(const Call& call) {
  const long number = call.number;
  const auto operation = static_cast<int>(call.arguments[1]) & FUTEX_CMD_MASK;
  if (number == SYS_futex && operation != FUTEX_WAIT && operation != FUTEX_WAIT_BITSET) return nullptr;
  for (const CallErrors& row : kErrors) {
    if (row.number == number) return &row;
  }
  return nullptr;
}

struct Range {
  uint64_t begin, end;
};

// Where a process has the libraries' code.
std::vector<Range> code_of(pid_t process, const std::vector<std::string>& libraries) {
  std::vector<Range> ranges;
  std::ifstream maps("/proc/" + std::to_string(process) + "/maps");
  for (std::string line; std::getline(maps, line);) {
    Range range{};
    char permissions[8] = {};
    if (sscanf(line.c_str(), "%lx-%lx %7s", &range.begin, &range.end, permissions) != 3 || permissions[2] != 'x') continue;
    const std::string file = line.substr(line.find_last_of(" /") + 1);
    for (const std::string& library : libraries) {
      if (file.compare(0, library.size(), library) == 0) ranges.push_back(range);
    }
  }
  return ranges;
}

// One run of the program, with the call at `fail_at` failing.
class Run {
 public:
  Run(const std::vector<std::string>& libraries, long fail_at, int which_error)
      : libraries_(libraries), fail_at_(fail_at), which_error_(which_error) {}

  // Returns the program's wait status; -1: it did not end.
  int run(char** program);
  bool reached() const { return count_ >= fail_at_; }
  // What failed, for people.
  std::string what() const { return what_; }
  // Calls of the libraries' of which no list knows.
  const std::set<long>& unknown() const { return unknown_; }
  bool failed_to_unmap() const { return failed_ != nullptr && failed_->number == SYS_munmap; }
  // Whether the call that failed has another errno to try.
  bool has_more_errors() const {
    return failed_ != nullptr && which_error_ + 1 < kMostErrors && failed_->errors[which_error_ + 1] != 0;
  }

 private:
  struct Task {
    bool inside = false;  // a system call, between its entry and its exit
    int pending_error = 0;
  };

  bool is_libraries(pid_t task, const Call& call);
  void at_entry(pid_t task, Task* state);
  void at_exit(pid_t task, Task* state);

  const std::vector<std::string>& libraries_;
  const long fail_at_;
  const int which_error_;
  long count_ = 0;
  bool over_ = false;  // the program asked for its parent: no more faults
  const CallErrors* failed_ = nullptr;
  std::set<long> unknown_;
  std::string what_ = "nothing";
  std::vector<Range> code_;
  std::vector<Range> code_of_liburcu_;
  std::vector<Range> code_of_linker_;
  std::map<pid_t, Task> tasks_;
};

bool Run::is_libraries(pid_t task, const Call& call) {
  if (code_.empty()) code_ = code_of(task, libraries_);
  // The dynamic linker's own, which has a library's addresses on its stack while it loads it.
  if (code_of_linker_.empty()) code_of_linker_ = code_of(task, {"ld-linux"});
  for (const Range& range : code_of_linker_) {
    if (call.at >= range.begin && call.at < range.end) return false;
  }
  uint64_t words[kStackWords] = {};
  iovec local{words, sizeof words};
  iovec remote{reinterpret_cast<void*>(call.stack), sizeof words};
  const ssize_t bytes = process_vm_readv(task, &local, 1, &remote, 1, 0);
  const size_t count = bytes > 0 ? static_cast<size_t>(bytes) / sizeof *words : 0;
  const auto in_code = [this](uint64_t address) {
    for (const Range& range : code_) {
      if (address >= range.begin && address < range.end) return true;
    }
    return false;
  };
  bool found = in_code(call.at) || in_code(call.link);
  for (size_t i = 0; i < count && !found; ++i) found = in_code(words[i]);
  if (!found || count == 0) return found;
  // Called by liburcu, through a function of libc.
  if (code_of_liburcu_.empty()) code_of_liburcu_ = code_of(task, {"liburcu"});
  const uint64_t caller = call.link != 0 ? call.link : words[0];
  for (const Range& range : code_of_liburcu_) {
    if (caller >= range.begin && caller < range.end) return false;
  }
  return true;
}

void Run::at_entry(pid_t task, Task* state) {
  user_regs_struct registers;
  if (!get_registers(task, &registers)) return;
  const Call call = call_of(registers);
  if (call.number == SYS_getppid) over_ = true;
  // Until the libraries are mapped there is nothing of theirs to find, and maps to look for again.
  if (call.number == SYS_execve) {
    code_.clear();
    code_of_liburcu_.clear();
    code_of_linker_.clear();
  }
  const CallErrors* row = errors_of(call);
  const bool passed_over = std::find(std::begin(kPassedOver), std::end(kPassedOver), call.number) != std::end(kPassedOver);
  if (over_ || (row == nullptr && passed_over) || !is_libraries(task, call)) return;
  if (row == nullptr) {
    unknown_.insert(call.number);
    return;
  }
  if (++count_ != fail_at_) return;
  failed_ = row;
  // Threads may come in another order in each run: then it is another call, with fewer errors to choose from.
  state->pending_error = row->errors[which_error_] != 0 ? row->errors[which_error_] : row->errors[0];
  std::ostringstream text;
  text << row->name << "(" << std::hex << call.arguments[0] << ", " << call.arguments[1] << ", " << call.arguments[2] << ") with "
       << strerror(state->pending_error);
  what_ = text.str();
  skip_call(task, &registers);
}

void Run::at_exit(pid_t task, Task* state) {
  if (state->pending_error == 0) return;
  user_regs_struct registers;
  if (!get_registers(task, &registers)) return;
  set_result(task, &registers, -state->pending_error);
  state->pending_error = 0;
}

volatile sig_atomic_t out_of_time = 0;

int Run::run(char** program) {
  const pid_t child = fork();
  if (child == 0) {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    execvp(program[0], program);
    fprintf(stderr, "syscall_faults: %s: %s\n", program[0], strerror(errno));
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ptrace(PTRACE_SETOPTIONS, child, nullptr,
         PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_EXITKILL);
  ptrace(PTRACE_SYSCALL, child, nullptr, nullptr);
  tasks_[child] = {};
  int result = -1;
  out_of_time = 0;
  alarm(kRunSeconds);
  // After the program's end its children are waited for too: none may be left behind.
  while (!tasks_.empty()) {
    const pid_t task = waitpid(-1, &status, __WALL);
    if (task < 0) {
      if (errno == EINTR && out_of_time == 0) continue;
      break;
    }
    if (WIFEXITED(status) || WIFSIGNALED(status)) {
      tasks_.erase(task);
      if (task == child) result = status;
      continue;
    }
    Task& state = tasks_[task];
    const int signal = WSTOPSIG(status);
    int deliver = 0;
    if (signal == (SIGTRAP | 0x80)) {
      state.inside = !state.inside;
      if (state.inside) {
        at_entry(task, &state);
      } else {
        at_exit(task, &state);
      }
    } else if (signal != SIGTRAP && signal != SIGSTOP) {
      deliver = signal;
    }
    ptrace(PTRACE_SYSCALL, task, nullptr, deliver);
  }
  alarm(0);
  for (const auto& [task, state] : tasks_) kill(task, SIGKILL);
  while (waitpid(-1, &status, __WALL) > 0) {}
  return out_of_time != 0 ? -1 : result;
}

std::string tell(int status) {
  if (status == -1) return "it did not end within " + std::to_string(kRunSeconds) + " s";
  if (WIFSIGNALED(status)) return std::string("signal ") + strsignal(WTERMSIG(status));
  return "exit status " + std::to_string(WEXITSTATUS(status));
}

[[noreturn]] void usage() {
  fprintf(stderr, "usage: syscall_faults [--first N] [--step N] [--errors one|all] LIBRARY... -- PROGRAM [ARGUMENT...]\n");
  exit(2);
}

long number_of(const char* text) {
  char* end = nullptr;
  const long value = text == nullptr ? 0 : strtol(text, &end, 10);
  if (value < 1 || *end != 0) usage();
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  long first = 1;
  long step = 1;
  bool all_errors = false;
  std::vector<std::string> libraries;
  int i = 1;
  for (; i < argc && strcmp(argv[i], "--") != 0; ++i) {
    if (strcmp(argv[i], "--first") == 0) {
      first = number_of(argv[++i]);
    } else if (strcmp(argv[i], "--step") == 0) {
      step = number_of(argv[++i]);
    } else if (strcmp(argv[i], "--errors") == 0) {
      const std::string which = argv[++i] == nullptr ? "" : argv[i];
      if (which != "one" && which != "all") usage();
      all_errors = which == "all";
    } else {
      libraries.emplace_back(argv[i]);
    }
  }
  if (libraries.empty() || i + 1 >= argc) usage();
  char** program = argv + i + 1;
  struct sigaction action{};
  action.sa_handler = [](int) { out_of_time = 1; };
  sigaction(SIGALRM, &action, nullptr);

  char held[] = "/tmp/syscall_faults-XXXXXX";
  const int held_file = mkstemp(held);
  if (held_file < 0) {
    perror("syscall_faults: mkstemp");
    return 1;
  }
  setenv("FAULTS_HELD", held, 1);

  long tried = 0;
  long findings = 0;
  Run undisturbed(libraries, LONG_MAX, 0);
  if (const int status = undisturbed.run(program); status != 0) {
    ++findings;
    printf("without any fault: %s\n", tell(status).c_str());
  }
  std::set<long> unknown = undisturbed.unknown();
  std::map<std::string, long> by_call;
  for (long n = first;; n += step) {
    bool reached = false;
    for (int which = 0;; ++which) {
      Run run(libraries, n, which);
      const int status = run.run(program);
      reached = run.reached();
      unknown.insert(run.unknown().begin(), run.unknown().end());
      if (reached) {
        ++tried;
        ++by_call[run.what().substr(0, run.what().find('('))];
      }
      const bool excused = run.failed_to_unmap() && status >= 0 && WIFEXITED(status) && WEXITSTATUS(status) == kHoldsMore;
      if (status != 0 && !excused) {
        ++findings;
        printf("call %ld, %s: %s\n", n, run.what().c_str(), tell(status).c_str());
        fflush(stdout);
      }
      if (!reached || !all_errors || !run.has_more_errors()) break;
    }
    if (!reached) break;
  }
  close(held_file);
  unlink(held);
  for (const long number : unknown) {
    ++findings;
    printf("system call %ld: neither in kErrors nor in kPassedOver\n", number);
  }
  printf("%ld faults, %ld findings;", tried, findings);
  for (const auto& [name, count] : by_call) printf(" %s %ld", name.c_str(), count);
  printf("\n");
  // A run in which nothing could fail proves nothing.
  if (tried == 0) printf("expected calls of the libraries to fail, found none\n");
  return findings == 0 && tried != 0 ? 0 : 1;
}
