// Owning, 64-byte aligned, uninitialised memory. Movable, never copied.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include "core/error.h"

namespace gptoss {

template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) : count_(count) {
    CHECK(count <= (std::numeric_limits<size_t>::max() - 64) / sizeof(T), "a buffer of ", count, " elements of ",
          sizeof(T), " bytes does not fit the address space");
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, bytes == 0 ? 64 : bytes);
    CHECK(memory != nullptr, "out of memory: ", bytes,
          " bytes were asked for; use a shorter context, fewer sequences or a smaller model");
    data_.reset(static_cast<T*>(memory));
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> data_;
  size_t count_ = 0;
};

}  // namespace gptoss
