// The sampler's arguments and results on their way: one parcel there, one copy back.
#pragma once

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

  // Draws from `logits` [count, vocab], in memory of the backend's device; returns when `to` is filled.
  void draw(const SampleRequest& request, const float* logits, const SampleResult& to);

 private:
  Backend& backend_;
  Parcel arguments_;
  DeviceBuffer<unsigned char> results_;
  PinnedBlock host_;
};

}  // namespace gptoss
