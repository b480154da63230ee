#include "bindings/batch.h"

#include <algorithm>

namespace gptoss::bindings {

BatchArguments::BatchArguments(const py::object& row_start, const py::object& context, int rows, int decoding) {
  Argument starts("row_start", row_start), contexts("context", context);
  sequences_ = contexts.size(0);
  contexts.shape({sequences_});
  starts.shape({sequences_ + 1});
  const int32_t* start = starts.read<int32_t>();
  const int32_t* length = contexts.read<int32_t>();
  row_start_.assign(start, start + sequences_ + 1);
  CHECK(sequences_ > 0, "context is empty, expected at least one sequence");
  CHECK(start[0] == 0, "row_start[0] is ", start[0], ", expected 0");
  CHECK(start[sequences_] == rows, "row_start ends at ", start[sequences_], ", the step has ", rows, " rows");
  for (int s = 0; s < sequences_; ++s) {
    CHECK(start[s] < start[s + 1], "row_start[", s + 1, "] is ", start[s + 1], ", expected more than row_start[", s,
          "] = ", start[s]);
    CHECK(length[s] >= 0 && length[s] < INT32_MAX - (start[s + 1] - start[s]), "context[", s, "] is ", length[s],
          ", expected 0 or more, and room for the new tokens");
  }
  int single = 0;
  while (single < sequences_ && start[single + 1] == single + 1) ++single;
  CHECK(decoding >= -1 && decoding <= single, "decoding is ", decoding, ", expected at most the ", single,
        " sequences of one row at the beginning");
  decoding_ = decoding < 0 ? single : decoding;
  sequence_.reserve(rows);
  position_.reserve(rows);
  for (int s = 0; s < sequences_; ++s)
    for (int row = start[s]; row < start[s + 1]; ++row) {
      sequence_.push_back(s);
      position_.push_back(length[s] + row - start[s]);
    }
}

Batch BatchArguments::view() const {
  return {rows(), sequences_, row_start_.data(), sequence_.data(), position_.data(), decoding_};
}

int BatchArguments::longest() const { return *std::max_element(position_.begin(), position_.end()) + 1; }

const int32_t* BatchArguments::check_pages(const char* name, const py::object& pages, int pool, int page_size,
                                           int window) {
  Argument argument(name, pages);
  const int stride = argument.size(1);
  argument.shape({sequences_, stride});
  const int32_t* table = argument.read<int32_t>();
  for (int s = 0; s < sequences_; ++s) {
    const int first = position_[row_start_[s]], last = position_[row_start_[s + 1] - 1];
    const int oldest = window == 0 ? 0 : std::max(0, first - window + 1);
    CHECK(last / page_size < stride, name, " has ", stride, " pages a sequence, sequence ", s, " reaches page ",
          last / page_size, "; give it longer rows");
    for (int page = oldest / page_size; page <= last / page_size; ++page) {
      const int id = table[size_t(s) * stride + page];
      CHECK(id >= 0 && id < pool, name, "[", s, ", ", page, "] is ", id, ", expected a page of the pool, 0 to ",
            pool - 1);
    }
  }
  return tables_.emplace_back(table, table + size_t(sequences_) * stride).data();
}

Batch stage_batch(Staging& stage, const Batch& host) {
  return {host.rows,
          host.sequences,
          stage.in(host.row_start, size_t(host.sequences) + 1),
          stage.in(host.sequence, host.rows),
          stage.in(host.position, host.rows),
          host.decode_rows};
}

}  // namespace gptoss::bindings
