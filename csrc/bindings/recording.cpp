// Recording: ops whose arguments stay on the device, run in turn and timed. What the benches measure with.
#include <atomic>

#include "bindings/bindings.h"
#include "bindings/run_op.h"

namespace gptoss::bindings {
namespace {

std::atomic<uint64_t> recordings{0};

class Recording {
 public:
  Recording(std::shared_ptr<BackendHandle> device, const py::iterable& calls) : device_(std::move(device)) {
    CHECK(device_->recording == nullptr, "this backend is recording already; record one after the other");
    device_->recording = &kept_;
    const auto stop = [this](void*) { device_->recording = nullptr; };
    const std::unique_ptr<void, decltype(stop)> until_here(this, stop);
    for (const py::handle& call : calls) call();
    CHECK(!kept_.ops.empty(), "the calls ran no op on this backend, expected at least one");
  }
  ~Recording() { device_->backend->wait_for(device_->backend->mark()); }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  size_t size() const { return kept_.ops.size(); }

  double seconds(int rounds) {
    CHECK(rounds >= 1, "rounds is ", rounds, ", expected 1 or more");
    double found = 0;
    device_->run([&] {
      Backend& backend = *device_->backend;
      const auto round = [&] {
        for (const auto& op : kept_.ops) op();
      };
      const auto repeat = [&](int times) {
        for (int i = 0; i < times; ++i) backend.repeat(key_, round);
      };
      // A device takes memory the first time, may forget its records over that, and records the next.
      if (!std::exchange(warm_, true)) repeat(3);
      found = backend.seconds([&] { repeat(rounds); });
    });
    return found;
  }

 private:
  const std::shared_ptr<BackendHandle> device_;
  const RepeatKey key_{UINT64_MAX, ++recordings};  // no step has so many rows
  KeptOps kept_;
  bool warm_ = false;
};

}  // namespace

void bind_recording(py::module_& m) {
  py::class_<Recording>(m, "Recording",
                        "The ops that `calls` call on a backend, kept with their arguments on its device instead of "
                        "run. What they would have returned is left undefined.")
      .def(py::init<std::shared_ptr<BackendHandle>, const py::iterable&>(), py::arg("backend"), py::arg("calls"))
      .def("__len__", &Recording::size)
      .def("seconds", &Recording::seconds, py::arg("rounds"),
           "Runs all ops in order, `rounds` times; seconds by the device's clock, without copies from or to the host.");
}

}  // namespace gptoss::bindings
