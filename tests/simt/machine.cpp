#include "machine.h"

#include <algorithm>
#include <deque>
#include <random>
#include <sstream>

#include "observer.h"

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
  std::string text("(");
  text.append(std::to_string(i.x)).append(", ").append(std::to_string(i.y)).append(", ").append(std::to_string(i.z));
  return text.append(")");
}

std::string name_of(const Thread& thread) {
  return "thread " + coordinates(thread.index) + " of block " + coordinates(thread.block->index);
}

size_t patience = 20'000'000;

[[noreturn]] void give_up(const std::string& message);

// The launch in progress. Threads are kept for later launches: making a stack costs more than running on it.
struct Machine {
  std::vector<std::unique_ptr<Block>> resident;
  std::deque<std::unique_ptr<Thread>> spare;
  size_t made = 0;
  std::vector<Thread*> ready;
  std::string error;
  int mood = 0;
  size_t mood_left = 0;
  size_t idle = 0;                           // turns since somebody got anywhere
  char begin_order, end_order, fence_order;  // addresses for `acquire` and `release`

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

  std::unique_ptr<Thread> take() {
    if (spare.empty() || (made < kFresh)) {
      ++made;
      return std::make_unique<Thread>();
    }
    std::unique_ptr<Thread> thread = std::move(spare.front());
    spare.pop_front();
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
      std::unique_ptr<Thread> thread = take();
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
        acquire(&begin_order);
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
    release(&end_order);
    const Unobserved own_work;
    if (!self->copies.empty())
      give_up(name_of(*self) + " ended without waiting for its cp.async at " + text(self->copies.front().where));
    idle = 0;
    self->done = true;
    if (--self->block->live > 0) return;
    for (const auto& [place, barrier] : self->block->mbarriers)
      if (!barrier.copies.empty())
        give_up("block " + coordinates(self->block->index) + " ended without waiting for its cp.async.bulk at " +
                text(barrier.copies.front().where));
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

// From here on: what the public functions share. They are Unobserved, these need not be.

void give_up(const std::string& message) {
  machine.error = message;
  const Observed others;
  Fiber::pause();
  __builtin_unreachable();  // a launch that was given up resumes nobody
}

void pause_for(const char* what, const Where& where) {
  self->waits_for = what;
  self->where = where;
  const Observed others;
  Fiber::pause();
}

void queue_up(std::vector<Thread*>& waiting, const char* what, const Where& where) {
  waiting.push_back(self);
  pause_for(what, where);
}

void let_go(std::vector<Thread*>& waiting) {
  for (Thread* thread : waiting) machine.wake(thread);
  waiting.clear();
  machine.idle = 0;
}

void take_turns(const char* what, const Where& where) {
  machine.wake(self);
  pause_for(what, where);
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
  const Unobserved own_work;
  give_up(message);
}

void yield(const char* what, const Where& where) {
  const Unobserved own_work;
  take_turns(what, where);
}

void fence(const Where& where) {
  const Unobserved own_work;
  release(&machine.fence_order);
  take_turns("__threadfence", where);
  acquire(&machine.fence_order);
}

void wait_among(std::vector<Thread*>& waiting, const char* what, const Where& where) {
  const Unobserved own_work;
  queue_up(waiting, what, where);
}

void wake(std::vector<Thread*>& waiting) {
  const Unobserved own_work;
  let_go(waiting);
}

void barrier(int id, int count, const Where& where) {
  const Unobserved own_work;
  if (id < 0 || id >= kBarriers) give_up("barrier " + std::to_string(id) + " at " + text(where) + ", there are 16");
  Block& block = *self->block;
  if (count == 0) count = static_cast<int>(block.threads.size());
  if (count % kWarp != 0 && count != static_cast<int>(block.threads.size()))
    give_up("barrier for " + std::to_string(count) + " threads at " + text(where) + ", expected whole warps");
  Barrier& barrier = block.barriers[id];
  if (barrier.waiting.empty()) {
    barrier.expected = count;
    barrier.where = where;
  }
  if (barrier.expected != count || !same(barrier.where, where))
    give_up("divergent barrier " + std::to_string(id) + ": " + name_of(*self) + " is at " + text(where) + " for " +
            std::to_string(count) + " threads, " + std::to_string(barrier.waiting.size()) + " wait at " +
            text(barrier.where) + " for " + std::to_string(barrier.expected));
  char* order = &barrier.order[barrier.generation % 2];
  release(order);
  if (static_cast<int>(barrier.waiting.size()) + 1 < count) {
    queue_up(barrier.waiting, "a barrier", where);
  } else {
    let_go(barrier.waiting);
    ++barrier.generation;
    take_turns("a barrier", where);  // the last to come is not the first to go on
  }
  acquire(order);
}

void join(uint32_t mask, const char* name, const Where& where, void* operand,
          void (*compute)(const std::array<void*, kWarp>&), bool ordered) {
  const Unobserved own_work;
  Block& block = *self->block;
  const int first = self->rank - self->lane;
  const int lanes = std::min(kWarp, static_cast<int>(block.threads.size()) - first);
  const uint32_t exist = lanes == kWarp ? ~0u : (1u << lanes) - 1;
  if (!(mask >> self->lane & 1) || (mask & ~exist)) {
    std::ostringstream here;
    here << name << " at " << text(where) << ": mask 0x" << std::hex << mask << " of " << name_of(*self)
         << (mask & ~exist ? " names lanes that do not exist" : " does not name the lane itself");
    give_up(here.str());
  }
  Warp& warp = block.warps[self->rank / kWarp];
  std::vector<Collective>& open = warp.open;
  Collective* mine = nullptr;
  for (Collective& c : open) {
    if (!(c.mask & mask)) continue;
    if (c.mask != mask || std::strcmp(c.name, name) != 0 || !same(c.where, where)) {
      std::ostringstream here;
      here << "divergent warp: " << name_of(*self) << " is in " << name << " at " << text(where) << " with mask 0x"
           << std::hex << mask << ", lanes 0x" << c.arrived << " wait in " << c.name << " at " << text(c.where)
           << " with mask 0x" << c.mask;
      give_up(here.str());
    }
    mine = &c;
  }
  if (!mine) {
    open.push_back({.mask = mask, .name = name, .where = where});
    mine = &open.back();
    if (ordered) mine->order = &warp.order[warp.ordered++ % 2];
  }
  mine->arrived |= 1u << self->lane;
  mine->operand[self->lane] = operand;
  char* order = mine->order;
  if (ordered) release(order);
  if (mine->arrived != mask) {
    pause_for(name, where);
  } else {
    if (compute) compute(mine->operand);
    machine.idle = 0;
    open.erase(open.begin() + (mine - open.data()));
    for (int lane = 0; lane < lanes; ++lane)
      if (lane != self->lane && (mask >> lane & 1)) machine.wake(block.threads[first + lane].get());
  }
  if (ordered) acquire(order);
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
  release(&machine.begin_order);
  std::string error;
  {
    const Unobserved own_work;
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
  acquire(&machine.end_order);
  CHECK(error.empty(), name, ": ", error);
}

}  // namespace simt
