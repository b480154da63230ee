// The simulated GPU: blocks of fibers, one fiber a CUDA thread, under a scheduler that is unfair on purpose.
//
// Several blocks are resident at once. A thread runs until it waits (barrier, warp collective, atomic); who goes
// next is drawn from a seed, so that a kernel that forgot a barrier meets an order in which it matters. Whatever
// CUDA leaves undefined (a barrier reached by some, lanes in different collectives, a mask without its caller)
// ends the launch with an error that names file and line.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "core/error.h"
#include "fiber.h"

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned nx = 1, unsigned ny = 1, unsigned nz = 1) : x(nx), y(ny), z(nz) {}
};

namespace simt {

using Where = std::source_location;
constexpr int kWarp = 32;
constexpr int kBarriers = 16;

struct Block;
struct Thread;

// A `cp.async` that has been issued: it lands when it is waited for, not before.
struct PendingCopy {
  void* shared;
  const void* global;  // null: zeros
  int bytes;
  int group;
  Where where;
};

// What the lanes of one mask do together. Lanes leave pointers to their operands, the last one computes.
struct Collective {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  const char* name = nullptr;
  Where where;
  std::array<void*, kWarp> operand{};
  char* order = nullptr;  // of a collective that is a memory barrier too
};

// `order`, here and below: what stands for the order of memory that it makes. Two in turn: who has passed one and
// is at the next must not seem to come before those who have yet to pass the first.
struct Warp {
  std::vector<Collective> open;
  unsigned ordered = 0;
  char order[2];
  std::vector<std::shared_ptr<void>> wgmma;  // issued and not yet waited for, see warpgroup.h
  int committed = 0;                         // wgmma groups closed so far
};

struct Barrier {
  int expected = 0;
  Where where;
  std::vector<Thread*> waiting;
  unsigned generation = 0;
  char order[2];
};

// A `cp.async.bulk` that nobody has waited for yet, and what it counts at; see bulk.h.
struct BulkCopy {
  void* shared;
  const void* global;
  int bytes;
  Where where;
};

struct Mbarrier {
  int arrivals = 0;     // that end a phase
  int pending = 0;      // of them, still to come
  int64_t missing = 0;  // bytes of this phase that were announced, less those that copies are bringing
  unsigned phase = 0;   // how many have ended
  std::vector<BulkCopy> copies;
  std::vector<Thread*> waiting;
  const Thread* made_by = nullptr;
  unsigned made_at = 0;  // generation of barrier 0
  bool fenced = false;   // the asynchronous proxy has seen it made
  Where where;
  char issued_order, order[2];
};

struct Thread {
  Fiber fiber;
  dim3 index;
  int rank = 0;  // within the block
  int lane = 0;
  Block* block = nullptr;
  bool done = false;
  bool queued = false;
  const char* waits_for = nullptr;
  Where where;
  std::vector<PendingCopy> copies;
  int committed = 0;  // cp.async groups closed so far
};

struct Block {
  dim3 index;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  std::array<Barrier, kBarriers> barriers;
  std::map<size_t, Mbarrier> mbarriers;  // by place in shared memory
  // Of exactly the size asked for, and fresh for each block: an overrun meets a sanitizer's red zone.
  std::unique_ptr<std::byte, decltype(&std::free)> shared{nullptr, &std::free};
  size_t shared_bytes = 0;
  int live = 0;
};

// The thread that runs, and the launch it belongs to.
extern thread_local Thread* self;
extern thread_local dim3 grid_size, block_size;

// Seed of the schedules to come; every launch draws from it.
void set_seed(uint64_t seed);

// After how many turns in which nobody got past a barrier, a collective or its own end a launch is given up:
// its threads wait for each other in loops.
void set_patience(size_t turns);

// Runs one grid to its end. Throws gptoss::Error when the kernel does what CUDA does not define.
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel, const char* name);

// Ends the launch with this message, from inside a kernel.
[[noreturn]] void stop(const std::string& message);

// "file.cpp:12", for messages.
std::string text(const Where& where);

// "thread (0, 0, 0) of block (1, 0, 0)", the running one.
std::string own_name();

// Lets others run; the calling thread goes on at some later time.
void yield(const char* what, const Where& where);

// The running thread waits until somebody wakes those waiting, who go on at some later time.
void wait_among(std::vector<Thread*>& waiting, const char* what, const Where& where);
void wake(std::vector<Thread*>& waiting);

// bar.sync id, count; count = 0 is every thread of the block. Every caller must come from the same line.
void barrier(int id, int count, const Where& where);

// Joins the collective of `mask`; `ordered` makes it a memory barrier too. `operand` must live in the caller's frame.
// `compute(operands)` runs once, in whichever lane arrives last; operands of lanes outside the mask are null.
void join(uint32_t mask, const char* name, const Where& where, void* operand,
          void (*compute)(const std::array<void*, kWarp>&), bool ordered = false);

// __threadfence: what was written before is seen by whoever passes a fence later.
void fence(const Where& where);

}  // namespace simt
