// Calling one op with arguments from the host: at once, or kept on the device to be run again (see Recording).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "bindings/handles.h"

namespace gptoss::bindings {

// Ops with their arguments. Weights at one address are taken for the same weights.
struct KeptOps {
  std::vector<std::function<void()>> ops;
  std::map<std::pair<const void*, MatrixUse>, Linear> dense;
  std::map<const void*, ExpertLinear> experts;
  DeviceStorage storage;
};

// One call's arguments on the device. Without `kept` the host's own memory serves where the device is the host.
class OpArguments : public Staging {
 public:
  OpArguments(Backend& backend, KeptOps* kept) : Staging(backend, kept != nullptr), backend_(backend), kept_(kept) {}

  // In the form that the backend's ops read.
  Linear prepare(const Linear& stored, MatrixUse use) {
    if (kept_ == nullptr) return backend_.prepare(stored, use, weights_);
    const auto [found, is_new] = kept_->dense.try_emplace({stored.weight, use});
    if (is_new) {
      found->second = backend_.prepare(stored, use, kept_->storage);
      if (found->second.q8 == nullptr) own(found->second.weight, size_t(stored.out) * stored.in);
      own(found->second.bias, stored.out);
    }
    return found->second;
  }
  ExpertLinear prepare(const ExpertLinear& stored) {
    if (kept_ == nullptr) return backend_.prepare(stored, weights_);
    const auto [found, is_new] = kept_->experts.try_emplace(stored.blocks);
    if (is_new) {
      const size_t rows = size_t(stored.experts) * stored.out, blocks = rows * stored.in / kMxfp4Block;
      found->second = backend_.prepare(stored, kept_->storage);
      own(found->second.blocks, blocks * kMxfp4BlockBytes);
      own(found->second.scales, blocks);
      own(found->second.bias, rows);
    }
    return found->second;
  }
  Screen prepare_screen(const Linear& stored) {
    return backend_.prepare_screen(stored, kept_ == nullptr ? weights_ : kept_->storage);
  }

 private:
  // The host's backend reads the caller's array: a copy takes its place, since the caller may let go of it.
  template <typename T>
  void own(const T*& data, size_t count) {
    if (!backend_.is_host() || data == nullptr) return;
    T* copy = kept_->storage.take<T>(backend_, count);
    backend_.copy_in(copy, data, count * sizeof(T));
    data = copy;
  }

  Backend& backend_;
  KeptOps* kept_;
  DeviceStorage weights_;
};

// Runs `op` with the parameters that `make(OpArguments&)` returns; keeps it instead while the backend is recording.
template <typename Params, typename Make>
void run_op(BackendHandle& device, void (Backend::*op)(const Params&), Make&& make) {
  device.run([&] {
    Backend& backend = *device.backend;
    auto arguments = std::make_shared<OpArguments>(backend, device.recording);
    const Params params = make(*arguments);
    if (device.recording != nullptr) {
      device.recording->ops.push_back([&backend, op, arguments, params] { (backend.*op)(params); });
      return;
    }
    (backend.*op)(params);
    arguments->finish();
  });
}

}  // namespace gptoss::bindings
