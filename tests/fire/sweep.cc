// SPDX-License-Identifier: MIT
//
// Aborts each restartable sequence of a program or shared library at each of its instructions, as it was built, without
// any hook, and has the result checked.
//
//   sweep PROGRAM ARGUMENT MODULE [preload=LIBRARY] [also=CONFIGURATION]
//         [expect=caught]
//
// Runs PROGRAM ARGUMENT (target.cc) under ptrace. MODULE is the file, of PROGRAM or a library that it maps, whose sequences
// are meant: those that its section __rseq_cs describes.
// also: everything a second time with that as PERCPU_CONF, since other ways may be taken then.
// expect=caught: the sequences are mutants, and it must find that by their results.
//
//   1. Which instructions are there? A breakpoint at a sequence's beginning; the thread's rseq_cs is cleared, so that the
//      kernel leaves it alone, and it is single-stepped to the end. Different rounds may take different ways. All ways
//      together must have passed every byte between beginning and end, so that no instruction is overlooked. A sequence that
//      always leaves early is struck at its beginning first (Sequence::primed), which may change that.
//   2. For each instruction, and for the first behind the end: a breakpoint there, hit once, removed; then the thread goes
//      on, in one of several manners (Blow). Stopping has preempted it, so before the end the kernel must send it to the
//      abort handler, whose first instruction has a breakpoint too; behind the end it must not. The target compares what
//      the operation did with what it should do.
//
// Only one thread is stopped, which moves between CPUs when the sweep tells it to.
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "arch.h"
#include "round.h"

namespace {

using fire::Page;

[[noreturn]] void fail(const std::string &what) {
  std::fprintf(stderr, "sweep: %s\n", what.c_str());
  std::exit(2);
}

[[noreturn]] void skip(const std::string &why) {
  std::printf("skipped: %s\n", why.c_str());
  std::exit(77);
}

// As the kernel knows it (struct rseq_cs).
struct Descriptor {
  uint32_t version, flags;
  uint64_t start, length, abort;
  uint64_t end() const { return start + length; }
};

// Where the section __rseq_cs of an ELF file is, counted from the beginning of the file's image.
struct Section {
  uint64_t address = 0, size = 0;
};
Section find_section(const std::string &path) {
  const int file = open(path.c_str(), O_RDONLY);
  struct stat about{};
  if (file < 0 || fstat(file, &about) != 0) fail(path + ": " + strerror(errno));
  const size_t size = static_cast<size_t>(about.st_size);
  const char *image = static_cast<const char *>(mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0));
  if (image == MAP_FAILED) fail(path + ": " + strerror(errno));
  close(file);
  const auto *head = reinterpret_cast<const Elf64_Ehdr *>(image);
  const auto *sections = reinterpret_cast<const Elf64_Shdr *>(image + head->e_shoff);
  const auto *segments = reinterpret_cast<const Elf64_Phdr *>(image + head->e_phoff);
  uint64_t base = ~uint64_t{0};
  for (int i = 0; i < head->e_phnum; ++i)
    if (segments[i].p_type == PT_LOAD && segments[i].p_vaddr < base) base = segments[i].p_vaddr;
  Section found;
  for (int i = 0; i < head->e_shnum; ++i)
    if (std::strcmp(image + sections[head->e_shstrndx].sh_offset + sections[i].sh_name, "__rseq_cs") == 0)
      found = {sections[i].sh_addr - base, sections[i].sh_size};
  munmap(const_cast<char *>(image), size);
  if (found.size == 0) fail(path + " has no section __rseq_cs");
  return found;
}

std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(static_cast<unsigned>(cpu), &set)) cpus.push_back(cpu);
  return cpus;
}

constexpr int kNotTraced = 126;  // exit status of a child that may not be traced

// The stopped program.
class Target {
 public:
  Target(std::vector<std::string> arguments, std::string preload, Page *page, int page_file, int cpu)
      : arguments_(std::move(arguments)), preload_(std::move(preload)), page_(page), page_file_(page_file), cpu_(cpu) {
    start();
  }
  ~Target() { end(); }
  Target(const Target &) = delete;
  Target &operator=(const Target &) = delete;

  void start() {
    std::memset(page_, 0, sizeof *page_);
    pid_ = fork();
    if (pid_ < 0) fail("fork");
    if (pid_ == 0) run();
    int status = 0;
    if (waitpid(pid_, &status, __WALL) != pid_) fail("waitpid");
    if (WIFEXITED(status) && WEXITSTATUS(status) == kNotTraced) skip("no process may be traced here");
    if (!WIFSTOPPED(status)) fail("the target died before it was to start");
    ptrace(PTRACE_SETOPTIONS, pid_, nullptr, PTRACE_O_EXITKILL | PTRACE_O_TRACEEXEC);
    resume();
    expect_stop(SIGTRAP, "to exec");
    // Everything is mapped once the first round is over.
    resume();
    expect_stop(fire::kRoundOver, "to end its first round");
    if (page_->rseq_cs == 0) skip("the threads of this process have no rseq");
    if (page_->nr_wrong != 0) fail(std::string("undisturbed: ") + page_->wrong);
  }
  void end() {
    if (pid_ > 0 && !gone_) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, __WALL);
    }
    pid_ = -1;
    gone_ = false;
    planted_.clear();
  }
  void restart() {
    end();
    start();
  }

  uint64_t base_of(const std::string &path) const {
    std::FILE *maps = std::fopen(("/proc/" + std::to_string(pid_) + "/maps").c_str(), "r");
    if (maps == nullptr) fail("no /proc/PID/maps");
    char line[4096];
    uint64_t base = 0;
    while (base == 0 && std::fgets(line, sizeof line, maps) != nullptr) {
      const char *name = std::strchr(line, '/');
      if (name != nullptr && std::string(name, std::strcspn(name, "\n")) == path) base = std::strtoull(line, nullptr, 16);
    }
    std::fclose(maps);
    if (base == 0) fail(path + " is not mapped by the target");
    return base;
  }

  uint64_t read(uint64_t address) const {
    errno = 0;
    const long word = ptrace(PTRACE_PEEKTEXT, pid_, address, nullptr);
    if (errno != 0) fail("cannot read the target's memory");
    return static_cast<uint64_t>(word);
  }
  void write(uint64_t address, uint64_t word) const {
    if (ptrace(PTRACE_POKETEXT, pid_, address, word) != 0) fail("cannot write the target's memory");
  }

  void plant(uint64_t address) {
    const uint64_t word = read(address);
    if (!planted_.emplace(address, word & fire::kBreakpointMask).second) return;
    write(address, (word & ~fire::kBreakpointMask) | fire::kBreakpoint);
  }
  void remove(uint64_t address) {
    const auto found = planted_.find(address);
    if (found == planted_.end()) return;
    write(address, (read(address) & ~fire::kBreakpointMask) | found->second);
    planted_.erase(found);
  }

  void resume(int signal = 0) const { ptrace(PTRACE_CONT, pid_, nullptr, signal); }

  // Where it stopped next: at a breakpoint (its address), at the end of a round (0), or it is gone (kGone).
  static constexpr uint64_t kGone = ~uint64_t{0};
  uint64_t wait_stop() {
    for (;;) {
      int status = 0;
      if (waitpid(pid_, &status, __WALL) != pid_) fail("waitpid");
      if (!WIFSTOPPED(status)) {
        gone_ = true;
        return kGone;
      }
      if (WSTOPSIG(status) == fire::kRoundOver) return 0;
      if (WSTOPSIG(status) == SIGTRAP) {
        const uint64_t at = counter();
        const uint64_t planted = at - fire::kAfterBreakpoint;
        return planted_.count(planted) != 0 ? planted : at;
      }
      resume(WSTOPSIG(status));
    }
  }
  uint64_t counter() const {
    fire::Registers registers;
    if (!fire::get_registers(pid_, &registers)) fail("cannot read the target's registers");
    return fire::program_counter(&registers);
  }
  // Takes the breakpoint away and sets the thread back on it.
  void step_back(uint64_t address) {
    remove(address);
    fire::Registers registers;
    if (!fire::get_registers(pid_, &registers)) fail("cannot read the target's registers");
    fire::program_counter(&registers) = address;
    if (!fire::set_registers(pid_, &registers)) fail("cannot set the target's registers");
  }
  // One instruction. False: the target is gone.
  bool single_step() {
    ptrace(PTRACE_SINGLESTEP, pid_, nullptr, nullptr);
    int status = 0;
    if (waitpid(pid_, &status, __WALL) != pid_) fail("waitpid");
    gone_ = !WIFSTOPPED(status);
    return !gone_;
  }
  void move_to(int cpu) const {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<unsigned>(cpu), &set);
    if (sched_setaffinity(pid_, sizeof set, &set) != 0) fail("cannot move the target");
  }
  // The kernel finds no sequence under way.
  void forget_sequence() const { write(page_->rseq_cs, 0); }
  const Page &page() const { return *page_; }
  void begin_verdict(bool inside) const {
    page_->nr_wrong = 0;
    page_->inside = inside;
  }

 private:
  [[noreturn]] void run() const {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<unsigned>(cpu_), &set);
    sched_setaffinity(0, sizeof set, &set);
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(kNotTraced);
    setenv(fire::kPageVariable, std::to_string(page_file_).c_str(), 1);
    if (!preload_.empty()) setenv("LD_PRELOAD", preload_.c_str(), 1);
    raise(SIGSTOP);
    std::vector<char *> argv;
    for (const std::string &argument : arguments_) argv.push_back(const_cast<char *>(argument.c_str()));
    argv.push_back(nullptr);
    execv(argv[0], argv.data());
    _exit(127);
  }
  void expect_stop(int signal, const char *what) {
    int status = 0;
    if (waitpid(pid_, &status, __WALL) != pid_ || !WIFSTOPPED(status)) fail(std::string("the target died before it was ") + what);
    while (WSTOPSIG(status) != signal) {
      resume(WSTOPSIG(status));
      if (waitpid(pid_, &status, __WALL) != pid_ || !WIFSTOPPED(status))
        fail(std::string("the target died before it was ") + what);
    }
  }

  std::vector<std::string> arguments_;
  std::string preload_;
  Page *page_;
  int page_file_;
  int cpu_;
  pid_t pid_ = -1;
  bool gone_ = false;
  std::map<uint64_t, uint64_t> planted_;  // address: the bits that the breakpoint took the place of
};

// One sequence, and what was learned about it. All addresses are those of one run: the target is mapped at the same place
// in each, as the sweep turns off address space randomization.
struct Sequence {
  Descriptor of;
  std::map<uint64_t, uint64_t> next;  // the instructions that were executed, and where each ends
  bool primed = false;
  bool complete() const {
    uint64_t at = of.start;
    while (at < of.end()) {
      const auto found = next.find(at);
      if (found == next.end()) return false;
      at = found->second;
    }
    return at == of.end();
  }
};

// Single-steps a sequence from its beginning, and notes the instructions.
bool follow(Target *target, Sequence *sequence) {
  target->step_back(sequence->of.start);
  target->forget_sequence();
  uint64_t at = sequence->of.start;
  while (at >= sequence->of.start && at < sequence->of.end()) {
    if (!target->single_step()) return false;
    const uint64_t then = target->counter();
    uint64_t &end = sequence->next[at];
    if (const uint64_t jump = fire::jump_bytes(target->read(at)); jump != 0) end = at + jump;
    else if (then > at && then - at <= fire::kLongestInstruction) end = then;
    else fail("an instruction that is neither a conditional jump nor goes on behind itself");
    at = then;
  }
  return true;
}

constexpr int kMostRounds = 32;  // until every sequence has been seen whole; in the second half of them they are primed

std::vector<Sequence> find_sequences(Target *target, const std::string &module) {
  const Section section = find_section(module);
  const uint64_t base = target->base_of(module) + section.address;
  std::vector<Sequence> sequences;
  for (uint64_t at = base; at < base + section.size; at += 32) {
    Sequence sequence;
    sequence.of = {0, 0, target->read(at + 8), target->read(at + 16), target->read(at + 24)};
    sequences.push_back(sequence);
  }
  bool all = false;
  for (int round = 0; round < kMostRounds && !all; ++round) {
    std::set<uint64_t> struck;
    for (Sequence &sequence : sequences) {
      if (sequence.complete()) continue;
      sequence.primed = round >= kMostRounds / 2;
      target->plant(sequence.of.start);
    }
    target->resume();
    for (uint64_t stop; (stop = target->wait_stop()) != 0;) {
      if (stop == Target::kGone) fail("the target died while it was single-stepped");
      int signal = 0;
      for (Sequence &sequence : sequences) {
        if (sequence.of.start != stop) continue;
        if (sequence.primed && struck.insert(stop).second) {
          signal = fire::kStrike;
          target->step_back(stop);
        } else {
          if (!follow(target, &sequence)) fail("the target died while it was single-stepped");
        }
        if (!sequence.complete()) target->plant(stop);
      }
      target->resume(signal);
    }
    all = true;
    for (Sequence &sequence : sequences) {
      target->remove(sequence.of.start);
      all = all && sequence.complete();
    }
  }
  return sequences;
}

enum class Blow { kStop, kStrike, kMigrate, kStep };
constexpr Blow kBlows[] = {Blow::kStop, Blow::kStrike, Blow::kMigrate, Blow::kStep};
constexpr const char *kBlowNames[] = {"stopped", "struck", "migrated", "single-stepped"};
constexpr int kSteps = 40;

class Sweep {
 public:
  Sweep(Target *target, std::vector<int> cpus) : target_(*target), cpus_(std::move(cpus)) {}

  // Aborts the sequence at an instruction in one manner. Returns an empty string, or what was wrong.
  std::string strike(const Sequence &sequence, uint64_t point, Blow blow) {
    const Descriptor &of = sequence.of;
    const bool inside = point < of.end();
    std::string operation;
    bool primed = !sequence.primed, hit = false, aborted = false, late = false;
    target_.begin_verdict(inside);
    target_.plant(primed ? point : of.start);
    target_.resume();
    for (uint64_t stop; (stop = target_.wait_stop()) != 0;) {
      if (stop == Target::kGone) {
        target_.restart();
        return "the target died";
      }
      int signal = 0;
      if (stop == of.start && !primed) {
        primed = true;
        target_.step_back(stop);
        target_.plant(point);
        signal = fire::kStrike;
      } else if (stop == point && !hit) {
        hit = true;
        operation = target_.page().operation;
        target_.step_back(point);
        if (inside) target_.plant(of.abort);
        if (blow == Blow::kStrike) signal = fire::kStrike;
        if (blow == Blow::kMigrate) target_.move_to(cpus_.back());
        if (blow == Blow::kStep && !step(of, &aborted)) return "the target died";
      } else if (stop == of.abort) {
        aborted = true;
        target_.step_back(of.abort);
      } else {
        late = true;
      }
      target_.resume(signal);
    }
    target_.remove(of.start);
    target_.remove(point);
    target_.remove(of.abort);
    if (blow == Blow::kMigrate) target_.move_to(cpus_.front());
    nr_aborts_ += aborted;
    if (!hit) return "never reached";
    if (late) return operation + ": stopped where no breakpoint is";
    if (inside && !aborted) return operation + ": not aborted";
    if (target_.page().nr_wrong == 0) return "";
    ++nr_wrong_results_;
    return target_.page().wrong;
  }

  uint64_t nr_aborts() const { return nr_aborts_; }
  // Blows after which the target found other memory or another result than expected; what else went wrong is not among them.
  unsigned nr_wrong_results() const { return nr_wrong_results_; }

 private:
  // As a debugger does: each step is a preemption, so the thread is sent to the abort handler once and again.
  bool step(const Descriptor &of, bool *aborted) {
    for (int i = 0; i < kSteps; ++i) {
      if (!target_.single_step()) {
        target_.restart();
        return false;
      }
      const uint64_t at = target_.counter();
      if (at == of.abort + fire::kAfterBreakpoint || at == of.abort) {
        *aborted = true;
        target_.step_back(of.abort);
      }
    }
    return true;
  }

  Target &target_;
  std::vector<int> cpus_;
  uint64_t nr_aborts_ = 0;
  unsigned nr_wrong_results_ = 0;
};

}  // namespace

int main(int argc, char **argv) {
  if (argc < 4) fail("usage: sweep PROGRAM ARGUMENT MODULE [preload=LIBRARY] [also=CONFIGURATION] [expect=caught]");
  std::string preload;
  bool expect_caught = false;
  std::vector<std::string> configurations = {""};
  for (int i = 4; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("preload=", 0) == 0) preload = argument.substr(8);
    else if (argument.rfind("also=", 0) == 0) configurations.push_back(argument.substr(5));
    else if (argument == "expect=caught") expect_caught = true;
    else fail("unknown argument " + argument);
  }
  char *module = realpath(argv[3], nullptr);
  if (module == nullptr) fail(std::string(argv[3]) + ": " + strerror(errno));
  const std::vector<int> cpus = allowed_cpus();

  const int page_file = static_cast<int>(memfd_create("fire", 0));
  if (page_file < 0 || ftruncate(page_file, sizeof(Page)) != 0) fail("memfd_create");
  auto *page = static_cast<Page *>(mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, page_file, 0));
  if (page == MAP_FAILED) fail("mmap");
  // Inherited: each run of the target has its code where the last had it. A sandbox may refuse; see below.
  personality(ADDR_NO_RANDOMIZE);
  std::set<uint64_t> seen;  // sequences that were executed whole, by their place in the module
  size_t nr_sequences = 0;
  uint64_t nr_aborts = 0;
  unsigned nr_points = 0, nr_bad = 0, nr_instructions = 0, nr_unseen = 0, nr_wrong_results = 0;
  for (const std::string &configuration : configurations) {
    setenv("PERCPU_CONF", configuration.c_str(), 1);
    Target target({argv[1], argv[2]}, preload, page, page_file, cpus.front());

    const std::vector<Sequence> sequences = find_sequences(&target, module);
    const uint64_t base = target.base_of(module);
    bool moved = false;  // the target died, and its next run has its code elsewhere: there the sweep ends
    Sweep sweep(&target, cpus);
    for (const Sequence &sequence : sequences) {
      if (sequence.complete()) seen.insert(sequence.of.start - base);
      else if (configuration == configurations.back() && seen.count(sequence.of.start - base) == 0) {
        ++nr_unseen;
        std::printf("sequence at +0x%llx: not all of its %llu bytes were executed\n",
                    static_cast<unsigned long long>(sequence.of.start - base),
                    static_cast<unsigned long long>(sequence.of.length));
      }
      std::set<uint64_t> points{sequence.of.end()};
      for (const auto &one : sequence.next) points.insert(one.first);
      if (sequence.next.empty()) continue;
      nr_instructions += static_cast<unsigned>(sequence.next.size());
      for (const uint64_t point : points) {
        for (const Blow blow : kBlows) {
          if (moved) break;
          ++nr_points;
          const std::string wrong = sweep.strike(sequence, point, blow);
          if (wrong.empty()) continue;
          ++nr_bad;
          moved = target.base_of(module) != base;
          if (nr_bad <= 20)
            std::printf("%s at +%llu of the sequence at +0x%llx: %s\n", kBlowNames[static_cast<int>(blow)],
                        static_cast<unsigned long long>(point - sequence.of.start),
                        static_cast<unsigned long long>(sequence.of.start - base), wrong.c_str());
        }
      }
    }
    nr_sequences = sequences.size();
    nr_aborts += sweep.nr_aborts();
    nr_wrong_results += sweep.nr_wrong_results();
  }
  std::printf("%zu sequences (%u not seen whole), %u instructions, %u blows, %llu aborts, %u wrong, of these %u results\n", nr_sequences,
              nr_unseen, nr_instructions, nr_points, static_cast<unsigned long long>(nr_aborts), nr_bad, nr_wrong_results);
  // Caught is a mutant whose results are wrong: one that dies, or is never aborted, shows a fault of the test.
  // (What works on another CPU's copy does no harm where there is one CPU.)
  if (expect_caught) return nr_wrong_results != 0 ? 0 : cpus.size() > 1 ? 1 : 77;
  return nr_bad == 0 && nr_unseen == 0 ? 0 : 1;
}
