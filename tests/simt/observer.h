// What ThreadSanitizer is told of the machine: it sees the kernels, not the scheduler. Nothing in other builds.
#pragma once

#include <cstddef>

#if defined(SIMT_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);
#endif

namespace simt {

// A thread that is used again is still the same to ThreadSanitizer, and cannot race with itself. So this many are
// made before one is used again, and then it is the one whose use lies furthest back.
#if defined(SIMT_TSAN)
constexpr size_t kFresh = 2048;  // each costs 0.8 MB
#else
constexpr size_t kFresh = 0;
#endif

// Edges of happens-before: from whoever released an address to whoever acquires it.
inline void release([[maybe_unused]] char* order) {
#if defined(SIMT_TSAN)
  __tsan_release(order);
#endif
}

inline void acquire([[maybe_unused]] char* order) {
#if defined(SIMT_TSAN)
  __tsan_acquire(order);
#endif
}

// The machine's own work hands memory from thread to thread. Edges of happens-before for that would hide the
// kernels' races, so nobody looks.
inline void ignore([[maybe_unused]] bool on) {
#if defined(SIMT_TSAN)
  if (on)
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  else
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
#endif
}

struct Unobserved {
  Unobserved() { ignore(true); }
  ~Unobserved() { ignore(false); }
};

// While others run, inside an Unobserved.
struct Observed {
  Observed() { ignore(false); }
  ~Observed() { ignore(true); }
};

}  // namespace simt
