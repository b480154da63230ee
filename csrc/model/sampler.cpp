#include "model/sampler.h"

#include <cstring>

namespace gptoss {

void Sampler::enqueue(const SampleRequest& r, const float* logits) {
  const size_t count = r.count, tops = count * r.logprobs, mask_words = (size_t(r.vocab) + 31) / 32;
  const size_t rows = arguments_.add(r.rows.data(), count);
  const size_t bias_token = arguments_.add(r.bias_token.data(), r.bias_token.size());
  const size_t bias_value = arguments_.add(r.bias_value, r.bias_token.size());
  const size_t history = arguments_.add(r.history.data(), r.history.size());
  const size_t allowed = arguments_.add(r.allowed, r.masks * mask_words);
  arguments_.send();

  // Every result is four bytes wide.
  const size_t words = 4 * count + 2 * tops;
  if (results_.bytes() < 4 * words) {
    backend_.wait_for(backend_.mark());
    results_ = {};
    results_ = {backend_, 8 * words};
  }
  auto* result = reinterpret_cast<int32_t*>(results_.data());
  backend_.sample({.logits = logits,
                   .count = r.count,
                   .vocab = r.vocab,
                   .rows = arguments_.at<SampleRow>(rows),
                   .bias_token = arguments_.at<int32_t>(bias_token),
                   .bias_value = arguments_.at<float>(bias_value),
                   .history = arguments_.at<int32_t>(history),
                   .allowed = arguments_.at<uint32_t>(allowed),
                   .logprobs = r.logprobs,
                   .status = reinterpret_cast<SampleStatus*>(result + count),
                   .token = result,
                   .token_logprob = reinterpret_cast<float*>(result + 2 * count),
                   .token_rank = result + 3 * count,
                   .top_token = result + 4 * count,
                   .top_logprob = reinterpret_cast<float*>(result + 4 * count + tops),
                   .any_cuts = r.any_cuts(),
                   .any_reports = r.any_reports(),
                   .screened = r.screened});

  arrived_ = results_.data();
  if (!backend_.is_host()) {
    unsigned char* host = host_.reserve(4 * words);
    backend_.enqueue_copy_out(host, results_.data(), 4 * words);
    arrived_ = host;
  }
  mark_ = backend_.mark();
  count_ = r.count, logprobs_ = r.logprobs;
  ++draws_;
}

void Sampler::collect(const SampleResult& to) {
  backend_.wait_for(mark_);
  const unsigned char* from = arrived_;
  const auto take = [&from](void* memory, size_t n) {
    std::memcpy(memory, from, 4 * n);
    from += 4 * n;
  };
  const size_t count = count_, tops = count * logprobs_;
  take(to.token, count);
  take(to.status, count);
  take(to.token_logprob, count);
  take(to.token_rank, count);
  take(to.top_token, tops);
  take(to.top_logprob, tops);
}

}  // namespace gptoss
