#include "model/kv_cache.h"

#include <atomic>
#include <cstring>

#include "core/philox.h"

namespace gptoss {
namespace {

std::atomic<uint64_t> caches{0};

// `count` numbers of a stream, in the cache's dtype; count is a multiple of four.
template <typename T>
std::vector<T> random_numbers(size_t count, uint64_t seed, uint64_t stream) {
  std::vector<T> numbers(count);
  for (size_t i = 0; i < count; i += 4) {
    const PhiloxWords bits = philox(seed, i, stream);
    for (int word = 0; word < 4; ++word)
      store(static_cast<float>(static_cast<int32_t>(bits.word[word])) * 0x1p-31f, &numbers[i + word]);
  }
  return numbers;
}

}  // namespace

KvCache::KvCache(Device& device, const Config& config, DType dtype, int page_size, int full_pages, int window_pages)
    : id_(++caches),
      dtype_(dtype),
      page_size_(page_size),
      kv_heads_(config.kv_heads),
      full_pages_(full_pages),
      window_pages_(window_pages) {
  CHECK(page_size > 0 && page_size % 16 == 0 && page_size <= kMaxPageSize, "page_size is ", page_size,
        ", expected a multiple of 16 up to ", kMaxPageSize);
  CHECK(full_pages > 0, "full_pages is ", full_pages, ", expected at least 1");
  CHECK(window_pages > 0, "window_pages is ", window_pages, ", expected at least 1");
  const size_t page_bytes = size_t{1} * kv_heads_ * kHeadDim * page_size * bytes_of(dtype);
  for (int window : config.windows) {
    const size_t pages = window == 0 ? full_pages : window_pages;
    CHECK(pages <= SIZE_MAX / page_bytes, pages, " pages of ", page_bytes, " bytes do not fit the address space");
    layers_.push_back({{device, pages * page_bytes}, {device, pages * page_bytes}});
  }
}

KvLayer KvCache::layer(int index, const int32_t* table, int table_stride) {
  Storage& storage = layers_[index];
  return {storage.keys.data(), storage.values.data(), dtype_, page_size_, kv_heads_, table, table_stride};
}

void KvCache::read_keys(Device& device, bool transposed, int layer, int page, float* to) const {
  const size_t count = size_t{1} * kv_heads_ * kHeadDim * page_size_, bytes = count * bytes_of(dtype_);
  std::vector<uint8_t> stored(bytes);
  device.copy_out(stored.data(), layers_[layer].keys.data() + page * bytes, bytes);
  const auto value = [&](size_t i) {
    if (dtype_ == DType::f32) {
      float found;
      std::memcpy(&found, stored.data() + sizeof(float) * i, sizeof(float));
      return found;
    }
    bf16 found;
    std::memcpy(&found, stored.data() + sizeof(bf16) * i, sizeof(bf16));
    return to_float(found);
  };
  for (int head = 0; head < kv_heads_; ++head)
    for (int slot = 0; slot < page_size_; ++slot)
      for (int d = 0; d < kHeadDim; ++d) {
        const size_t base = size_t(head) * kHeadDim * page_size_;
        *to++ = value(transposed ? base + size_t(d) * page_size_ + slot : base + size_t(slot) * kHeadDim + d);
      }
}

void KvCache::fill(Device& device, int layer, int page, uint64_t seed) {
  const size_t count = size_t{1} * kv_heads_ * kHeadDim * page_size_, bytes = count * bytes_of(dtype_);
  Storage& storage = layers_[layer];
  uint64_t stream = 2 * (uint64_t(layer) << 32 | uint64_t(page));
  for (DeviceBuffer<uint8_t>* side : {&storage.keys, &storage.values}) {
    uint8_t* to = side->data() + page * bytes;
    if (dtype_ == DType::f32)
      device.copy_in(to, random_numbers<float>(count, seed, stream++).data(), bytes);
    else
      device.copy_in(to, random_numbers<bf16>(count, seed, stream++).data(), bytes);
  }
}

size_t KvCache::bytes() const {
  size_t total = 0;
  for (const Storage& storage : layers_) total += storage.keys.bytes() + storage.values.bytes();
  return total;
}

}  // namespace gptoss
