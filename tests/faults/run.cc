// SPDX-License-Identifier: MIT
#include "run.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

namespace faults {

namespace {

constexpr size_t kStackWords = 96;

volatile sig_atomic_t out_of_time = 0;

bool begins_with(const std::string& text, const std::string& beginning) {
  return text.compare(0, beginning.size(), beginning) == 0;
}

}  // namespace

// Where a process has the libraries' code, and that of others whose calls are not theirs.
void Run::find_code(pid_t process) {
  code_.clear();
  code_is_known_ = true;
  std::ifstream maps("/proc/" + std::to_string(process) + "/maps");
  for (std::string line; std::getline(maps, line);) {
    Code code{};
    char permissions[8] = {};
    const int found = sscanf(line.c_str(), "%lx-%lx %7s %lx", &code.begin, &code.end, permissions, &code.offset);
    if (found != 4 || permissions[2] != 'x') continue;
    code.file = line.substr(line.find_last_of(" /") + 1);
    const auto add = [&](Code::Whose whose) {
      code.whose = whose;
      code_.push_back(code);
    };
    for (const std::string& library : program_.libraries) {
      if (begins_with(code.file, library)) add(Code::Whose::kLibraries);
    }
    if (begins_with(code.file, "liburcu")) add(Code::Whose::kLiburcu);
    if (begins_with(code.file, "ld-linux")) add(Code::Whose::kLinker);
  }
}

const Run::Code* Run::code_at(uint64_t address) const {
  for (const Code& code : code_) {
    if (address >= code.begin && address < code.end) return &code;
  }
  return nullptr;
}

bool Run::is_in(uint64_t address, Code::Whose whose) const {
  const Code* code = code_at(address);
  return code != nullptr && code->whose == whose;
}

// Empty: the call is not the libraries'.
std::string Run::site_of(pid_t task, const Call& call, const std::string& name) {
  if (!code_is_known_) find_code(task);
  // The dynamic linker's own, which has a library's addresses on its stack while it loads it.
  if (is_in(call.at, Code::Whose::kLinker)) return "";
  uint64_t words[kStackWords] = {};
  iovec local{words, sizeof words};
  iovec remote{reinterpret_cast<void*>(call.stack), sizeof words};
  const ssize_t bytes = process_vm_readv(task, &local, 1, &remote, 1, 0);
  const size_t count = bytes > 0 ? static_cast<size_t>(bytes) / sizeof *words : 0;
  // Called by liburcu, through a function of libc.
  if (count != 0 && is_in(call.link != 0 ? call.link : words[0], Code::Whose::kLiburcu)) return "";
  std::ostringstream site;
  size_t depth = 0;
  const auto look = [&](uint64_t address) {
    const Code* code = depth < program_.depth ? code_at(address) : nullptr;
    if (code == nullptr || code->whose != Code::Whose::kLibraries) return;
    site << (depth++ == 0 ? name + " at " : ", from ") << code->file << "+0x" << std::hex
         << address - code->begin + code->offset;
  };
  look(call.at);
  if (call.link != 0) look(call.link);
  for (size_t i = 0; i < count; ++i) look(words[i]);
  return site.str();
}

bool Run::is_to_fail(const std::string& site) {
  if (failed_ != nullptr) return false;
  return fault_.site.empty() ? count_ == fault_.at : site == fault_.site;
}

void Run::at_entry(pid_t task, Task* state) {
  user_regs_struct registers;
  if (!get_registers(task, &registers)) return;
  const Call call = call_of(registers);
  if (call.number == SYS_getppid) over_ = true;
  // The libraries are mapped one after the other.
  if (call.number == SYS_execve) code_is_known_ = false;
  state->maps_code = (call.number == SYS_mmap || call.number == SYS_mprotect) && (call.arguments[2] & PROT_EXEC) != 0;
  const CallErrors* row = errors_of(call);
  if (over_ || (row == nullptr && is_passed_over(call.number))) return;
  const std::string site = site_of(task, call, row == nullptr ? "system call " + std::to_string(call.number) : row->name);
  if (site.empty()) return;
  if (row == nullptr) {
    unknown_.insert(site);
    return;
  }
  ++count_;
  if (failed_ == nullptr) sites_.insert(site);
  if (!is_to_fail(site) || row->name == program_.spared) return;
  failed_ = row;
  failed_site_ = site;
  failed_to_give_ = call.number == SYS_munmap || (call.number == SYS_madvise && call.arguments[2] == MADV_DONTNEED);
  // Threads may come in another order in each run: then it is another call, with fewer errors to choose from.
  const int error = row->errors[fault_.which_error];
  state->pending_error = error != 0 ? error : row->errors[0];
  std::ostringstream text;
  text << row->name << "(" << std::hex << call.arguments[0] << ", " << call.arguments[1] << ", " << call.arguments[2] << ") with "
       << strerror(state->pending_error) << ", " << site;
  what_ = text.str();
  skip_call(task, &registers);
}

void Run::at_exit(pid_t task, Task* state) {
  if (state->maps_code) code_is_known_ = false;
  if (state->pending_error == 0) return;
  user_regs_struct registers;
  if (!get_registers(task, &registers)) return;
  set_result(task, &registers, -state->pending_error);
  state->pending_error = 0;
}

// A thread was stopped: at a system call, or for a signal.
void Run::follow(pid_t task, int status) {
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

int Run::run() {
  struct sigaction action{};
  action.sa_handler = [](int) { out_of_time = 1; };
  sigaction(SIGALRM, &action, nullptr);
  const pid_t child = fork();
  if (child == 0) {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    execvp(program_.command[0], program_.command);
    fprintf(stderr, "syscall_faults: %s: %s\n", program_.command[0], strerror(errno));
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
    if (WIFSTOPPED(status)) {
      follow(task, status);
      continue;
    }
    tasks_.erase(task);
    if (task == child) result = status;
  }
  alarm(0);
  for (const auto& [task, state] : tasks_) kill(task, SIGKILL);
  while (waitpid(-1, &status, __WALL) > 0) {}
  return out_of_time != 0 ? -1 : result;
}

}  // namespace faults
