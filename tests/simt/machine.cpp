#include "machine.h"

#include <algorithm>
#include <random>
#include <sstream>

#if defined(SIMT_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);
#endif

namespace simt {

thread_local Thread* self = nullptr;
thread_local dim3 grid_size, block_size;

namespace {

constexpr size_t kMaxShared = 227 * 1024;  // a Hopper block's (CUDA C++ programming guide, "compute capabilities")
constexpr size_t kSharedAlign = 1024;
constexpr int kPoison = 0xff;  // NaN as float and as bf16, -1 as an integer

thread_local std::mt19937_64 generator{1};

size_t draw(size_t below) { return generator() % below; }

bool same(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::string coordinates(dim3 i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

std::string name_of(const Thread& thread) {
  return "thread " + coordinates(thread.index) + " of block " + coordinates(thread.block->index);
}

size_t patience = 20'000'000;

// Edges of happens-before for ThreadSanitizer, which sees the kernels but not this file.
void release([[maybe_unused]] void* object) {
#if defined(SIMT_TSAN)
  __tsan_release(object);
#endif
}

void acquire([[maybe_unused]] void* object) {
#if defined(SIMT_TSAN)
  __tsan_acquire(object);
#endif
}

// The launch in progress. Threads are kept for later launches: making a stack costs more than running on it.
struct Machine {
  std::vector<std::unique_ptr<Block>> resident;
  std::vector<std::unique_ptr<Thread>> spare;
  std::vector<Thread*> ready;
  std::string error;
  int mood = 0;
  size_t mood_left = 0;
  size_t idle = 0;                 // turns since somebody got anywhere
  char launch_order, fence_order;  // addresses for `acquire` and `release`

  void wake(Thread* thread) { ready.push_back(thread); }

  // The newest, the oldest or any: whole stretches of one, because a fair mixture hides mistakes.
  Thread* next() {
    if (mood_left-- == 0) mood = static_cast<int>(draw(3)), mood_left = draw(200);
    const size_t last = ready.size() - 1;
    const size_t pick = mood == 0 ? last : mood == 1 ? 0 : draw(last + 1);
    std::swap(ready[pick], ready[last]);
    Thread* thread = ready[last];
    ready.pop_back();
    return thread;
  }

  void begin(dim3 index, dim3 size, size_t shared_bytes, const std::function<void()>& kernel) {
    auto block = std::make_unique<Block>();
    block->index = index;
    block->live = static_cast<int>(size.x * size.y * size.z);
    block->warps.resize((block->live + kWarp - 1) / kWarp);
    block->shared_bytes = shared_bytes;
    if (shared_bytes > 0) {
      void* memory = nullptr;
      if (posix_memalign(&memory, kSharedAlign, shared_bytes) != 0) throw std::bad_alloc();
      block->shared.reset(static_cast<std::byte*>(std::memset(memory, kPoison, shared_bytes)));
    }
    for (int rank = 0; rank < block->live; ++rank) {
      if (spare.empty()) spare.push_back(std::make_unique<Thread>());
      std::unique_ptr<Thread> thread = std::move(spare.back());
      spare.pop_back();
      const auto r = static_cast<unsigned>(rank);
      thread->index = {r % size.x, r / size.x % size.y, r / (size.x * size.y)};
      thread->rank = rank;
      thread->lane = rank % kWarp;
      thread->block = block.get();
      thread->done = false;
      thread->waits_for = nullptr;
      thread->copies.clear();
      thread->committed = 0;
      thread->fiber.start([this, &kernel] {
        acquire(&launch_order);
        kernel();
        finish();
      });
      wake(thread.get());
      block->threads.push_back(std::move(thread));
    }
    resident.push_back(std::move(block));
  }

  // The running thread has returned from the kernel.
  void finish() {
    if (!self->copies.empty())
      stop(name_of(*self) + " ended without waiting for its cp.async at " + text(self->copies.front().where));
    idle = 0;
    release(&launch_order);
    self->done = true;
    --self->block->live;
  }

  void retire(Block* block) {
    const auto found = std::find_if(resident.begin(), resident.end(), [&](auto& b) { return b.get() == block; });
    for (auto& thread : block->threads) spare.push_back(std::move(thread));
    resident.erase(found);
  }

  void abandon() {
    ready.clear();
    while (!resident.empty()) retire(resident.back().get());
  }

  // Why nobody gets anywhere.
  std::string standstill(const char* what) const {
    std::ostringstream out;
    out << what;
    int shown = 0;
    for (const auto& block : resident)
      for (const auto& thread : block->threads)
        if (!thread->done && thread->waits_for && ++shown <= 4)
          out << "; " << name_of(*thread) << " is in " << thread->waits_for << " at " << text(thread->where);
    int ended = 0;
    for (const auto& block : resident) ended += static_cast<int>(block->threads.size()) - block->live;
    out << "; waiting: " << shown << ", ended in the same blocks: " << ended;
    return out.str();
  }
};

thread_local Machine machine;

// What only the scheduler does is no business of ThreadSanitizer: it hands memory from thread to thread, and
// edges of happens-before that it would need for that would hide the kernels' races.
class Unobserved {
 public:
#if defined(SIMT_TSAN)
  Unobserved() { AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Unobserved() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__); }
#else
  Unobserved() {}
#endif
  Unobserved(const Unobserved&) = delete;
  Unobserved& operator=(const Unobserved&) = delete;
};

void pause_for(const char* what, const Where& where) {
  self->waits_for = what;
  self->where = where;
  Fiber::pause();
}

}  // namespace

void set_seed(uint64_t seed) { generator.seed(seed); }
void set_patience(size_t turns) { patience = turns; }

std::string text(const Where& where) {
  const std::string path = where.file_name();
  return path.substr(path.find_last_of('/') + 1) + ":" + std::to_string(where.line());
}

std::string own_name() { return name_of(*self); }

void stop(const std::string& message) {
  machine.error = message;
  Fiber::pause();
  __builtin_unreachable();  // a stopped launch resumes nobody
}

void yield(const char* what, const Where& where) {
  machine.wake(self);
  pause_for(what, where);
}

void fence(const Where& where) {
  release(&machine.fence_order);
  yield("__threadfence", where);
  acquire(&machine.fence_order);
}

void barrier(int id, int count, const Where& where) {
  if (id < 0 || id >= kBarriers) stop("barrier " + std::to_string(id) + " at " + text(where) + ", there are 16");
  Block& block = *self->block;
  if (count == 0) count = static_cast<int>(block.threads.size());
  if (count % kWarp != 0 && count != static_cast<int>(block.threads.size()))
    stop("barrier for " + std::to_string(count) + " threads at " + text(where) + ", expected whole warps");
  Barrier& barrier = block.barriers[id];
  if (barrier.waiting.empty()) {
    barrier.expected = count;
    barrier.where = where;
  }
  if (barrier.expected != count || !same(barrier.where, where))
    stop("divergent barrier " + std::to_string(id) + ": " + name_of(*self) + " is at " + text(where) + " for " +
         std::to_string(count) + " threads, " + std::to_string(barrier.waiting.size()) + " wait at " +
         text(barrier.where) + " for " + std::to_string(barrier.expected));
  release(&barrier);
  if (static_cast<int>(barrier.waiting.size()) + 1 < count) {
    barrier.waiting.push_back(self);
    pause_for("a barrier", where);
  } else {
    for (Thread* thread : barrier.waiting) machine.wake(thread);
    barrier.waiting.clear();
    machine.idle = 0;
    yield("a barrier", where);  // the last to come is not the first to go on
  }
  acquire(&barrier);
}

void join(uint32_t mask, const char* name, const Where& where, void* operand,
          void (*compute)(const std::array<void*, kWarp>&), bool ordered) {
  Block& block = *self->block;
  const int first = self->rank - self->lane;
  const int lanes = std::min(kWarp, static_cast<int>(block.threads.size()) - first);
  const uint32_t exist = lanes == kWarp ? ~0u : (1u << lanes) - 1;
  if (!(mask >> self->lane & 1) || (mask & ~exist)) {
    std::ostringstream here;
    here << name << " at " << text(where) << ": mask 0x" << std::hex << mask << " of " << name_of(*self)
         << (mask & ~exist ? " names lanes that do not exist" : " does not name the lane itself");
    stop(here.str());
  }
  std::vector<Collective>& open = block.warps[self->rank / kWarp];
  Collective* mine = nullptr;
  for (Collective& c : open) {
    if (!(c.mask & mask)) continue;
    if (c.mask != mask || std::strcmp(c.name, name) != 0 || !same(c.where, where)) {
      std::ostringstream here;
      here << "divergent warp: " << name_of(*self) << " is in " << name << " at " << text(where) << " with mask 0x"
           << std::hex << mask << ", lanes 0x" << c.arrived << " wait in " << c.name << " at " << text(c.where)
           << " with mask 0x" << c.mask;
      stop(here.str());
    }
    mine = &c;
  }
  if (!mine) {
    open.push_back({.mask = mask, .name = name, .where = where});
    mine = &open.back();
  }
  mine->arrived |= 1u << self->lane;
  mine->operand[self->lane] = operand;
  if (ordered) release(&open);
  if (mine->arrived != mask) {
    pause_for(name, where);
  } else {
    if (compute) compute(mine->operand);
    machine.idle = 0;
    open.erase(open.begin() + (mine - open.data()));
    for (int lane = 0; lane < lanes; ++lane)
      if (lane != self->lane && (mask >> lane & 1)) machine.wake(block.threads[first + lane].get());
  }
  if (ordered) acquire(&open);
}

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel, const char* name) {
  const size_t threads = size_t(block.x) * block.y * block.z;
  const size_t blocks = size_t(grid.x) * grid.y * grid.z;
  CHECK(threads > 0 && threads <= 1024, name, ": a block of ", threads, " threads, expected 1 to 1024");
  CHECK(blocks > 0 && grid.y <= 65535 && grid.z <= 65535, name, ": a grid of ", coordinates(grid),
        ", expected at least one block and at most 65535 along y and z");
  CHECK(shared_bytes <= kMaxShared, name, ": ", shared_bytes, " bytes of shared memory, a block has ", kMaxShared);
  CHECK(self == nullptr, name, ": launched from inside a kernel");
  grid_size = grid;
  block_size = block;
  std::vector<size_t> order(blocks);
  for (size_t i = 0; i < blocks; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), generator);
  const size_t at_once = 1 + draw(4);

  machine.error.clear();
  machine.idle = 0;
  release(&machine.launch_order);
  std::string error;
  {
    const Unobserved scheduler;
    while (machine.error.empty()) {
      while (machine.resident.size() < at_once && !order.empty()) {
        const auto i = static_cast<unsigned>(order.back());
        order.pop_back();
        machine.begin({i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)}, block, shared_bytes, kernel);
      }
      if (machine.resident.empty()) break;
      if (machine.ready.empty()) {
        machine.error = machine.standstill("deadlock: nobody can go on");
        break;
      }
      if (++machine.idle > patience) {
        machine.error = machine.standstill("livelock: nobody gets past the loop that it is in");
        break;
      }
      self = machine.next();
      self->fiber.resume();
      if (self->done && self->block->live == 0) machine.retire(self->block);
    }
    self = nullptr;
    error.swap(machine.error);
    machine.abandon();
  }
  acquire(&machine.launch_order);
  CHECK(error.empty(), name, ": ", error);
}

}  // namespace simt
