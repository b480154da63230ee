// A ragged batch from Python: checked, and completed with each row's sequence and position.
#pragma once

#include <vector>

#include "bindings/arrays.h"
#include "model/device.h"
#include "model/ops.h"

namespace gptoss::bindings {

class BatchArguments {
 public:
  // row_start [sequences + 1], context [sequences]: tokens of each sequence already in the cache. `rows` are
  // the rows the other arguments have. The first `decoding` sequences have a row each that is decoded, not part of
  // a prompt; -1: all sequences of one row that come before longer ones.
  BatchArguments(const py::object& row_start, const py::object& context, int rows, int decoding = -1);

  Batch view() const;
  int rows() const { return static_cast<int>(position_.size()); }
  int sequences() const { return sequences_; }
  int longest() const;  // tokens of the longest sequence, this step's included

  // Checks that `pages` [sequences, n] holds a page in [0, pool) wherever the step looks or writes, given
  // the window (0 = full) and the page size. Returns a copy of the table that lives as long as this.
  const int32_t* check_pages(const char* name, const py::object& pages, int pool, int page_size, int window);

 private:
  int sequences_, decoding_;
  std::vector<int32_t> row_start_, sequence_, position_;
  std::vector<std::vector<int32_t>> tables_;
};

// The batch's arrays on the device.
Batch stage_batch(Staging& stage, const Batch& host);

}  // namespace gptoss::bindings
