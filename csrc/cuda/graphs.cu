#include "cuda/graphs.h"

namespace gptoss::GPTOSS_GPU {

#ifdef GPTOSS_SIMT

Graph::Graph(Stream& stream, const std::function<void()>& work) {
  stream = &launches_;
  try {
    work();
  } catch (...) {
    stream = nullptr;
    throw;
  }
  stream = nullptr;
}
Graph::~Graph() = default;
void Graph::replay(Stream) const {
  for (const auto& launch : launches_) launch();
}

#else

Graph::Graph(Stream& stream, const std::function<void()>& work) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "beginning to record a step");
  cudaGraph_t captured = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &captured);
    if (captured) cudaGraphDestroy(captured);
    throw;
  }
  check(cudaStreamEndCapture(stream, &captured), "recording a step");
  const cudaError_t status = cudaGraphInstantiate(&graph_, captured, 0);
  cudaGraphDestroy(captured);
  check(status, "preparing a recorded step");
}
Graph::~Graph() {
  if (graph_) cudaGraphExecDestroy(graph_);
}
void Graph::replay(Stream stream) const { check(cudaGraphLaunch(graph_, stream), "replaying a step"); }

#endif

void Graphs::run(const RepeatKey& key, Stream& stream, const std::function<void()>& work) {
  const auto found = known_.find(key);
  if (found == known_.end()) {
    work();
    if (known_.size() >= kMost) known_.clear();
    known_.emplace(key, nullptr);
    return;
  }
  if (!found->second) found->second = std::make_unique<Graph>(stream, work);
  found->second->replay(stream);
}

}  // namespace gptoss::GPTOSS_GPU
