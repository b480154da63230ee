#include "bulk.h"

#include "observer.h"

namespace simt {

namespace {

constexpr int kMost = (1 << 20) - 1;             // arrivals, and bytes, of a phase (PTX ISA, "mbarrier contents")
constexpr uint64_t kMade = 0x6d626172726965ull;  // what shared memory holds of an mbarrier

[[noreturn]] void refuse(const char* what, const Where& where, const std::string& why) {
  stop(std::string(what) + " at " + text(where) + ": " + own_name() + " " + why);
}

// Place in shared memory, which `bytes` from there on must be inside of.
size_t place_of(const void* address, int bytes, int alignment, const char* what, const Where& where) {
  const auto place = static_cast<const std::byte*>(address) - self->block->shared.get();
  if (place < 0 || size_t(place) + bytes > self->block->shared_bytes || place % alignment != 0)
    refuse(what, where,
           "names " + std::to_string(bytes) + " bytes at offset " + std::to_string(place) + " of " +
               std::to_string(self->block->shared_bytes) + " bytes of shared memory, expected a multiple of " +
               std::to_string(alignment) + " inside");
  return static_cast<size_t>(place);
}

// The mbarrier there, which this thread must be able to see.
Mbarrier& made(const void* address, const char* what, const Where& where) {
  Block& block = *self->block;
  const auto found = block.mbarriers.find(place_of(address, sizeof kMade, sizeof kMade, what, where));
  if (found == block.mbarriers.end()) refuse(what, where, "uses an mbarrier that nobody has initialised");
  Mbarrier& barrier = found->second;
  if (std::memcmp(address, &kMade, sizeof kMade) != 0)
    refuse(what, where, "uses the mbarrier of " + text(barrier.where) + ", which something has overwritten");
  if (barrier.made_by != self && barrier.made_at == block.barriers[0].generation)
    refuse(what, where, "uses the mbarrier of " + text(barrier.where) + " with no __syncthreads in between");
  return barrier;
}

// Ends the phase if everybody has arrived and all bytes are on their way: late, when somebody waits for them.
void settle(Mbarrier& barrier, bool awaited, const char* what, const Where& where) {
  if (barrier.pending > 0) return;
  if (barrier.missing < 0)
    refuse(what, where,
           "ends a phase whose copies bring " + std::to_string(-barrier.missing) + " bytes more than it expects");
  if (barrier.missing > 0 || (!awaited && !barrier.copies.empty())) return;
  acquire(&barrier.issued_order);
  for (const BulkCopy& copy : barrier.copies) std::memcpy(copy.shared, copy.global, copy.bytes);
  release(&barrier.order[barrier.phase % 2]);
  barrier.copies.clear();
  barrier.pending = barrier.arrivals;
  ++barrier.phase;
  wake(barrier.waiting);
}

}  // namespace

void mbarrier_init(void* address, int arrivals, const Where& where) {
  const char* what = "mbarrier.init";
  const size_t place = place_of(address, sizeof kMade, sizeof kMade, what, where);
  if (arrivals < 1 || arrivals > kMost) refuse(what, where, "asks for " + std::to_string(arrivals) + " arrivals");
  if (self->block->mbarriers.contains(place)) refuse(what, where, "initialises an mbarrier that is one already");
  std::memcpy(address, &kMade, sizeof kMade);
  const Unobserved own_work;
  Mbarrier& barrier = self->block->mbarriers[place];
  barrier.arrivals = barrier.pending = arrivals;
  barrier.made_by = self;
  barrier.made_at = self->block->barriers[0].generation;
  barrier.where = where;
}

void mbarrier_expect(void* address, int bytes, const Where& where) {
  const char* what = "mbarrier.arrive.expect_tx";
  Mbarrier& barrier = made(address, what, where);
  if (bytes < 0 || bytes > kMost) refuse(what, where, "announces " + std::to_string(bytes) + " bytes");
  if (barrier.pending == 0) refuse(what, where, "comes to a phase for which all have arrived and nobody has waited");
  release(&barrier.order[barrier.phase % 2]);
  --barrier.pending;
  barrier.missing += bytes;
  settle(barrier, !barrier.waiting.empty(), what, where);
}

void mbarrier_wait(void* address, int parity, const Where& where) {
  const char* what = "mbarrier.try_wait";
  Mbarrier& barrier = made(address, what, where);
  if (parity != 0 && parity != 1) refuse(what, where, "waits for parity " + std::to_string(parity));
  if (const unsigned phase = barrier.phase; static_cast<int>(phase % 2) == parity) {
    settle(barrier, true, what, where);
    if (barrier.phase == phase)
      wait_among(barrier.waiting, what, where);
    else
      yield(what, where);  // the last to come is not the first to go on
  }
  acquire(&barrier.order[parity]);
}

void copy_bulk(void* shared, const void* global, int bytes, void* landed, const Where& where) {
  const char* what = "cp.async.bulk";
  if (bytes <= 0 || bytes % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0)
    refuse(what, where,
           "copies " + std::to_string(bytes) + " bytes, or from a misaligned address, expected multiples of 16");
  place_of(shared, bytes, 16, what, where);
  Mbarrier& barrier = made(landed, what, where);
  if (!barrier.fenced)
    refuse(what, where, "counts at the mbarrier of " + text(barrier.where) + " with no fence.proxy.async in between");
  std::memset(shared, 0xff, bytes);
  release(&barrier.issued_order);
  {
    const Unobserved own_work;
    barrier.copies.push_back({shared, global, bytes, where});
  }
  barrier.missing -= bytes;
  settle(barrier, !barrier.waiting.empty(), what, where);
}

void fence_async_proxy() {
  for (auto& [place, barrier] : self->block->mbarriers)
    if (barrier.made_by == self) barrier.fenced = true;
}

}  // namespace simt
