// SPDX-License-Identifier: MIT
#include "api/library.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "api/pool_attr.h"
#include "base/check.h"
#include "base/errno_kept.h"
#include "base/raw_syscall.h"
#include "os/cancel.h"
#include "os/env.h"
#include "os/file.h"
#include "os/load.h"
#include "runtime/trace.h"

namespace percpu {

constinit Library library;

namespace {

// Texts of the first use. Not on the stack: the first thread that uses the library may have a small one.
constexpr size_t kConfBytes = 4096;
constexpr size_t kHelpBytes = 8192;
char conf_text[kConfBytes];  // both under prepared_
char help_text[kHelpBytes];

// The default pool's offsets by copy id: where threads that may run sequences look (percpu_thread_.offset). They can point here
// before there is a default pool, so that an operation on another pool's handle need not make one. Zeros until then.
uintptr_t default_offsets[2 * kMaxCpus];

constexpr size_t kDefaultHugePageBytes = size_t{2} << 20;

// Whether the kernel said that this thread has no rseq.
__thread bool thread_without_rseq __attribute__((tls_model("initial-exec")));

// Whether this thread is making the default pool, or waits for who does: what that uses may come back, an mmap of the program's say.
__thread bool makes_default_pool __attribute__((tls_model("initial-exec")));

// A value of the main thread's own, whose destructor runs when that thread calls pthread_exit(), and not when the program
// ends otherwise.
pthread_key_t main_key;
bool has_main_key = false;

// A thread has room for the values of so many keys from the beginning; for those of others glibc calls malloc, which a signal
// handler must not. (With a later key, a main thread that did not load the library is watched from its first pool or fence on.)
constexpr pthread_key_t kKeysWithoutMalloc = 32;

__attribute__((constructor)) void make_main_key() {
  has_main_key = pthread_key_create(&main_key, [](void*) { library.main_thread_ends(); }) == 0;
  Library::watch_main_thread();
}

// A machine with one node, for PERCPU_CONF=nodes:one.
const NumaSource kOneNode = {
    [] { return false; }, [] { return 0; }, [](int) { return true; }, [](int, int) { return 0; },
};

}  // namespace

void Library::watch_main_thread() {
  if (has_main_key && is_main_thread()) (void)pthread_setspecific(main_key, &main_key);
}

// ---- first use -------------------------------------------------------------------------------------------------------

int Library::prepare() {
  if (prepared_.done()) return 0;
  const int result = watch_forks();
  if (result != 0) return result;
  const NotCancelled not_cancelled;
  return prepared_.run([this] { return prepare_now(); });
}

int Library::prepare_now() {
  watch_main_thread();
  read_configuration();
  const int result = read_machine();
  if (result != 0) return result;
  read_memory_settings();
  warnings_.set_limit(config_.warnings);
  environment_.system = &system();
  environment_.config = &config_;
  environment_.topology = &topology_;
  environment_.accounting = &accounting_;
  environment_.grace = &grace_;
  environment_.fence = &fence_;
  environment_.balancer = &balancer_;
  environment_.warnings = &warnings_;
  balancer_.init(system(), grace_);
  if (!watches_exit_) {
    // Without it the balance thread ends with the process, as any other thread does.
    (void)std::atexit(at_exit);
    watches_exit_ = true;
  }
  return 0;
}

void Library::read_configuration() {
  if (read_conf(conf_text, sizeof conf_text) >= sizeof conf_text) {
    report("PERCPU_CONF: expected at most %zu bytes, found more: the rest is ignored", sizeof conf_text - 1);
  }
  config_ = parse_config(conf_text, page_size_bytes(), [](void*, const char* message) { report("%s", message); }, nullptr);
  if (!config_.help) return;
  Text text(help_text, sizeof help_text);
  config_help(text);
  report_raw(help_text, text.length_bytes());
}

int Library::read_machine() {
  const NumaSource& numa = config_.nodes == NodesMode::kOne ? kOneNode : libnuma_source();
  const TopologySize size = measure_topology(system(), numa, &topology_, allowed_at_load());
  const size_t bytes = topology_storage_bytes(size);
  const intptr_t storage = system().mmap(0, bytes, PROT_READ | PROT_WRITE, 0);
  if (storage < 0) return -ENOMEM;
  read_topology(system(), numa, reinterpret_cast<void*>(storage), &topology_);
  if (config_.nodes != NodesMode::kOne && topology_.nodes_error != 0) warnings_.unbound("get_mempolicy", topology_.nodes_error);
  return 0;
}

void Library::read_memory_settings() {
  char text[128];
  environment_.huge_pages = huge_pages(system()) != HugePages::kNever;
  environment_.huge_page_bytes = kDefaultHugePageBytes;
  (void)read_beginning(system(), "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", text, sizeof text);
  const uint64_t huge_page_bytes = leading_number(text).value_or(0);
  if (huge_page_bytes > page_size_bytes() && is_power_of_two(huge_page_bytes)) environment_.huge_page_bytes = huge_page_bytes;
  environment_.strict_overcommit = strict_overcommit(system());
}

Pool* Library::make_default_pool() {
  int result = prepare();
  if (result == 0) {
    const NotCancelled not_cancelled;
    result = list_modules_and_make();
  }
  if (result != 0) {
    errno = -result;
    return nullptr;
  }
  return default_pool_.load(std::memory_order_acquire);
}

// The modules are listed before the flag is taken: who waits for the flag may be inside the dynamic linker's lock, in a callback
// from dl_iterate_phdr().
int Library::list_modules_and_make() {
  if (makes_default_pool) return -EDEADLK;
  makes_default_pool = true;
  int result = 0;
  {
    ModuleImages modules(system());
    result = modules.read();
    if (result == 0) result = default_made_.run([&] { return make_default_pool_now(modules.ranges()); });
  }
  makes_default_pool = false;
  return result;
}

int Library::make_default_pool_now(std::span<const ImageRange> images) {
  size_t static_bytes = 0;
  int result = statics_.lay_out(system(), images, page_size_bytes(), &static_bytes);
  if (result != 0) return result;
  PoolSetup setup{};
  setup.name = "default";
  setup.is_default = true;
  setup.unit_size_bytes = config_.unit_size_bytes;
  setup.static_bytes = static_bytes;
  setup.reserved_bytes = config_.reserved_size_bytes;
  setup.dynamic_bytes = config_.dynamic_size_bytes;
  setup.max_alloc_bytes = config_.max_alloc_bytes;
  setup.balance = config_.balance;
  setup.first_chunk = config_.first_chunk;
  Pool* pool = nullptr;
  result = Pool::create(environment_, setup, &pool);
  if (result != 0) return result;
  statics_.place(*pool);
  const percpu_view& view = pool->view();
  PERCPU_CHECK(view.nr_copies <= 2 * kMaxCpus, "expected at most two copies a CPU, found %u", view.nr_copies);
  std::copy_n(view.offset, view.nr_copies, default_offsets);
  // Who has no handle yet and walks over the CPUs may read these meanwhile, the counts first.
  std::atomic_ref(percpu_default_view_.offset).store(default_offsets, std::memory_order_relaxed);
  std::atomic_ref(percpu_default_view_.nr_copies).store(view.nr_copies, std::memory_order_release);
  std::atomic_ref(percpu_default_view_.nr_cpu_ids).store(view.nr_cpu_ids, std::memory_order_release);
  balancer_.add(*pool);
  default_pool_.store(pool, std::memory_order_release);
  return 0;
}

// ---- pools -----------------------------------------------------------------------------------------------------------

int Library::create_pool(const percpu_pool_attr& given, Pool** pool) {
  watch_main_thread();
  int result = prepare();
  if (result != 0) return result;
  PoolSetup setup{};
  result = read_pool_attr(given, config_, &setup);
  if (result != 0) return result;
  result = Pool::create(environment_, setup, pool);
  if (result == 0) balancer_.add(**pool);
  return result;
}

// All of it is the static part: what the pool has from its birth, and never gives to anybody.
int Library::create_bare_pool(const char* name, size_t size_bytes, Pool** pool) {
  watch_main_thread();
  int result = prepare();
  if (result != 0) return result;
  PoolSetup setup{};
  setup.name = name;
  setup.unit_size_bytes = setup.static_bytes = setup.max_bytes = size_bytes;
  setup.balance = BalanceMode::kOff;
  setup.first_chunk = FirstChunk::kPage;
  setup.bare = true;
  result = Pool::create(environment_, setup, pool);
  if (result == 0) balancer_.add(**pool);
  return result;
}

int Library::destroy_pool(Pool* pool) {
  if (pool == nullptr) return -EINVAL;
  if (pool == default_pool_if_made()) return -EBUSY;
  if (Grace::inside_section()) return -EDEADLK;
  if (!balancer_.has(pool)) {
    fatal("percpu_pool_destroy(%p): expected a pool that percpu_pool_create() made, found none there (destroyed before?)",
          static_cast<void*>(pool));
  }
  // Twice in a child that was forked when one batch had waited, and nobody had freed it yet.
  while (pool->grace_waiting() && !grace_.lost()) balancer_.free_after_grace();
  if (pool->nr_live() != 0) return -EBUSY;
  if (balancer_.remove(*pool)) pool->destroy();
  return 0;
}

int Library::refuse_without_pool(size_t size_bytes, size_t align_bytes, unsigned flags) {
  const Pool::Refusal refused = Pool::refusal(size_bytes, align_bytes, flags, kMaxUnitSizeBytes, page_size_bytes());
  if (refused.reason == nullptr) {
    PERCPU_TRACE5(alloc_failed, "default", size_bytes, align_bytes, flags, EAGAIN);
    if ((flags & PERCPU_NOWARN) == 0) warnings_.failure({size_bytes, align_bytes, flags, "there is no pool yet"}, false);
    return EAGAIN;
  }
  if ((flags & PERCPU_NOWARN) == 0) warnings_.illegal({size_bytes, align_bytes, flags, refused.reason, refused.most}, false);
  return EINVAL;
}

// ---- threads and copies ----------------------------------------------------------------------------------------------

bool Library::thread_has_rseq() {
  const ErrnoKept errno_kept;
  return process_has_rseq() && thread_registered(system());
}

// What the kernel says of a thread holds for its life (os/rseq.h), so it is asked once.
int Library::attach_thread() {
  if (percpu_thread_.offset != nullptr) return 1;
  if (thread_without_rseq) return 0;
  const bool registered = thread_has_rseq();
  if (registered) percpu_thread_.offset = default_offsets;
  thread_without_rseq = !registered;
  if (main_key < kKeysWithoutMalloc) watch_main_thread();
  return registered ? 1 : 0;
}

// Where nobody says it, any: what asks works by atomic instructions.
CpuId Library::current_cpu() {
  if (percpu_thread_.offset != nullptr) return CpuId{rseq_cpu_id()};  // a list of its own CPU's was empty, or stopped
  const ErrnoKept errno_kept;
  unsigned number = 0;
  unsigned node = 0;
  (void)system().getcpu(&number, &node);
  return CpuId{static_cast<int32_t>(number)};
}

void* Library::shared_copy(const percpu_view* view, const void* handle) {
  Pool* pool = view == &percpu_default_view_ ? default_pool_if_made()
                                             : reinterpret_cast<Pool*>(const_cast<percpu_view*>(view));
  if (pool == nullptr) fatal("operation on %p: expected a handle, found no pool made yet", handle);
  CpuId cpu = current_cpu();
  if (!pool->layout().unit_of_cpu(cpu).valid()) cpu = topology_.possible.first();
  uint32_t copy = static_cast<uint32_t>(cpu.value);
  if (process_has_rseq()) {
    copy = pool->view().nr_cpu_ids + static_cast<uint32_t>(pool->layout().group_of_cpu(cpu).value);
  }
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(handle) + pool->view().offset[copy]);
}

int Library::memory_node(unsigned cpu) {
  const CpuId id{static_cast<int32_t>(cpu)};
  if (prepare() != 0 || cpu >= topology_.nr_cpu_ids || !topology_.possible.has(id)) return -1;
  return topology_.nearest_memory_node(topology_.node_of_cpu(id)).value;
}

int Library::nr_machine_cpus() {
  const int result = prepare();
  return result != 0 ? result : static_cast<int>(topology_.nr_cpu_ids);
}

unsigned Library::nr_allowed_cpus() { return prepare() != 0 ? 0 : topology_.allowed.count(); }

int Library::fence(int cpu) {
  int result = prepare();
  if (result != 0) return result;
  if (cpu == PERCPU_ALL_CPUS) {
    result = fence_.all(system(), topology_.possible);
  } else {
    const CpuId id{cpu};
    if (!topology_.possible.has(id)) return -EINVAL;
    result = fence_.cpu(system(), id);
  }
  return result == 0 ? 0 : -ENOSYS;
}

int Library::start_balance() {
  if (prepare() != 0 || config_.balance != BalanceMode::kThread) return 0;
  balancer_.start_now();
  return balancer_.serves() ? 1 : 0;
}

// ---- questions -------------------------------------------------------------------------------------------------------

int Library::address_info(const void* address, percpu_address* info) {
  const auto value = reinterpret_cast<uintptr_t>(address);
  bool found = false;
  uintptr_t handle = 0;
  {
    const Balancer::Reader reader(balancer_);  // so long no pool goes away
    for (Pool& pool : balancer_.pools()) {
      found = pool.contains(value) && pool.address_info(value, info);
      if (!found) continue;
      handle = pool.memory().handle(ChunkId{info->chunk}, {static_cast<uint32_t>(info->unit_offset)});
      break;
    }
  }
  if (!found) return 0;
  // Static variables: the handle of the module's piece is what owns them.
  if ((info->flags & PERCPU_INFO_STATIC) != 0) {
    uintptr_t piece = 0;
    size_t piece_bytes = 0;
    if (statics_.owns(handle, &piece, &piece_bytes)) {
      info->flags |= PERCPU_INFO_STATIC | PERCPU_INFO_LIVE;
      info->handle = reinterpret_cast<void*>(piece);
      info->area_bytes = piece_bytes;
      info->area_offset = handle - piece;
    }
  }
  return 1;
}

int Library::page_node(const void* address) {
  NodeId node{};
  const int result = node_of(system(), reinterpret_cast<uintptr_t>(address), &node);
  if (result == -EPERM) return -ENOSYS;  // a sandbox refuses the question
  return result < 0 ? result : node.value;
}

}  // namespace percpu
