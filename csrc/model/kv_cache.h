// Keys and values of every layer, in pages. Two pools: full layers share one numbering of pages, sliding
// layers another, because a sliding layer's pages can be given back as they fall out of its window.
#pragma once

#include <vector>

#include "model/backend.h"
#include "model/config.h"

namespace gptoss {

class KvCache {
 public:
  // Layers with a window use `window_pages` pages, the others `full_pages`. The device must outlive this.
  KvCache(Device&, const Config&, DType, int page_size, int full_pages, int window_pages);

  // The layer's pages, seen through one step's page table [sequences, table_stride].
  KvLayer layer(int index, const int32_t* table, int table_stride);

  // Keys of one page of a layer: float [kv_heads, page_size, 64], on the host.
  void read_keys(Device&, bool transposed, int layer, int page, float* to) const;

  // Random keys and values, from [-1, 1], for one page of a layer: the same for the same seed.
  void fill(Device&, int layer, int page, uint64_t seed);

  int page_size() const { return page_size_; }
  int full_pages() const { return full_pages_; }
  int window_pages() const { return window_pages_; }
  uint64_t id() const { return id_; }  // of this cache alone
  size_t bytes() const;

 private:
  struct Storage {
    DeviceBuffer<uint8_t> keys, values;  // see KvLayer
  };
  uint64_t id_;
  DType dtype_;
  int page_size_;
  int kv_heads_;
  int full_pages_;
  int window_pages_;
  std::vector<Storage> layers_;
};

}  // namespace gptoss
