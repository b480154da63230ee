// The sampler's arguments and results on their way: one parcel there, one copy back.
#pragma once

#include <algorithm>
#include <vector>

#include "model/backend.h"
#include "model/parcel.h"

namespace gptoss {

// What `sample` reads beside the logits, on the host.
struct SampleRequest {
  int count;  // rows
  int vocab;
  std::vector<SampleRow> rows;
  std::vector<int32_t> bias_token;
  const float* bias_value;  // as many as bias_token
  std::vector<int32_t> history;
  const uint32_t* allowed;  // [masks, ceil(vocab / 32)], or null
  int masks;
  int logprobs;
  ScreenedLogits screened = {};

  bool any_cuts() const {
    return std::any_of(rows.begin(), rows.end(), [&](const SampleRow& row) { return row.cuts(vocab); });
  }
  bool any_reports() const {
    return std::any_of(rows.begin(), rows.end(), [](const SampleRow& row) { return row.skip_report == 0; });
  }
};

// SampleParams' outputs, on the host.
struct SampleResult {
  SampleStatus* status;
  int32_t* token;
  float* token_logprob;
  int32_t* token_rank;
  int32_t* top_token;
  float* top_logprob;
};

class Sampler {
 public:
  explicit Sampler(Backend& backend) : backend_(backend), arguments_(backend), host_(backend) {}

  // Draws from `logits` [count, vocab], in memory of the backend's device, after all work before. The host goes on.
  void enqueue(const SampleRequest& request, const float* logits);

  // Waits for the latest draw and fills `to`.
  void collect(const SampleResult& to);

  // The latest draw: its number, from 1 on, and its tokens [count] on the device, until the next. Before the first
  // there are none.
  uint64_t draws() const { return draws_; }
  int count() const { return count_; }
  const int32_t* tokens() const { return reinterpret_cast<const int32_t*>(results_.data()); }

 private:
  Backend& backend_;
  Parcel arguments_;
  DeviceBuffer<unsigned char>
      results_;  // tokens, status, log-probabilities, ranks, top tokens, their log-probabilities
  PinnedBlock host_;
  const unsigned char* arrived_ = nullptr;  // the results, once the work before mark_ is done
  uint64_t mark_ = 0, draws_ = 0;
  int count_ = 0, logprobs_ = 0;
};

}  // namespace gptoss
