// Asking for memory before it is needed.
#pragma once

#include <cstddef>

namespace gptoss::cpu {

// The lines of `bytes` bytes from `p` on shall come to the second cache. Any address may be asked for.
[[gnu::always_inline]] static inline void ask_for(const void* p, size_t bytes) {
  for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(static_cast<const char*>(p) + line, 0, 2);
}

}  // namespace gptoss::cpu
