// Recorded work: a CUDA graph for each key, or on the simulated GPU the list of launches with their arguments.
#pragma once

#include <functional>
#include <map>
#include <memory>

#include "cuda/launch.h"
#include "model/backend.h"

namespace gptoss::GPTOSS_GPU {

class Graph {
 public:
  // Captures what `work` enqueues on `stream`, which does not run.
  Graph(Stream& stream, const std::function<void()>& work);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void replay(Stream stream) const;

 private:
#ifdef GPTOSS_SIMT
  Recording launches_;
#else
  cudaGraphExec_t graph_ = nullptr;
#endif
};

// By key. Work runs as it is the first time, which lets workspaces grow; it is recorded the second time.
class Graphs {
 public:
  void run(const RepeatKey& key, Stream& stream, const std::function<void()>& work);

  // Records hold addresses of workspaces: call this when one has grown, whoever made it grow.
  void clear() { known_.clear(); }

 private:
  static constexpr size_t kMost = 512;  // a service meets a few dozen shapes
  std::map<RepeatKey, std::unique_ptr<Graph>> known_;
};

}  // namespace gptoss::GPTOSS_GPU
