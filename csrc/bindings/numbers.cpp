// The numbers of a loaded model, rows at a time, and the formats in which they are stored.
#include <algorithm>
#include <cmath>
#include <system_error>
#include <thread>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/model.h"
#include "cpu/kernels.h"
#include "cpu/packed_weights.h"
#include "cpu/usable_cores.h"
#include "model/mxfp4.h"

namespace gptoss::bindings {
namespace {

const Place& place_of(const Model& model, const std::string& name, int64_t first, int64_t count) {
  const auto found = model.places.find(name);
  CHECK(found != model.places.end(), "the model has no tensor ", name, "; use a name of its checkpoint");
  const Place& place = found->second;
  CHECK(first >= 0 && count >= 0 && first <= place.rows - count, "rows ", first, " to ", first + count, " of ", name,
        " are asked for, it has ", place.rows);
  return place;
}

// Where the weights are the host's, this takes no lock: a step holds the backend's for as long as it runs, and only
// reads the weights, so reading beside it is safe. What is not safe beside it is write_rows. Python keeps the two
// apart: all writes of a loaded model's numbers happen in Change.swap on the engine's thread, under _LiveStore.lock;
// everybody else reads by _LiveStore.read_all under that same lock, and the engine's own reads are on its thread.
// A device's copy is read in the order of its work, which the backend's lock keeps.
py::array_t<uint8_t> read_rows(Model& model, const std::string& name, int64_t first, int64_t count) {
  const Place& place = place_of(model, name, first, count);
  py::array_t<uint8_t> to({count, static_cast<int64_t>(place.row_bytes)});
  unsigned char* memory = to.mutable_data();
  if (count == 0) return to;
  Backend& backend = *model.backend->backend;
  const auto read = [&] { backend.read_rows(place, first, count, memory); };
  if (backend.is_host()) {
    py::gil_scoped_release release;
    read();
  } else {
    model.backend->run(read);
  }
  return to;
}

void write_rows(Model& model, const std::string& name, int64_t first, const py::object& array) {
  const Argument rows("rows", array);
  const int count = rows.size(0);
  const Place& place = place_of(model, name, first, count);
  rows.shape({count, static_cast<int64_t>(place.row_bytes)});
  const uint8_t* data = rows.read<uint8_t>();
  CHECK(place.form != Place::Form::scales || !std::count(data, data + count * place.row_bytes, kE8m0Nan), "rows of ",
        name, " hold a scale of 255, NaN in MXFP4; expected 0 to 254");
  if (count == 0) return;
  model.backend->run([&] {
    if (model.screened) {  // its logits would be computed with other numbers than their step had
      model.screened.reset();
      ++model.steps;
    }
    model.backend->backend->write_rows(place, first, count, data);
  });
}

py::array_t<float> decode(const py::object& codes, const py::object& scales) {
  const Argument code("codes", codes), scale("scales", scales);
  const int rows = scale.size(0), blocks = scale.size(1);
  scale.shape({rows, blocks});
  code.shape({rows, int64_t{blocks} * kMxfp4BlockBytes});
  const uint8_t* from = code.read<uint8_t>();
  const uint8_t* by = scale.read<uint8_t>();
  py::array_t<float> values({int64_t{rows}, int64_t{blocks} * kMxfp4Block});
  float* to = values.mutable_data();
  py::gil_scoped_release release;
  decode_mxfp4(from, by, size_t(rows) * blocks, to);
  return values;
}

constexpr size_t kBlocksOfAThread = 2048;

size_t usable_threads() {
  static const size_t cores = static_cast<size_t>(std::clamp(cpu::usable_cores(""), 1, 16));
  return cores;
}

// Neighbouring blocks, of one thread.
struct Part {
  size_t first, end;
  int64_t wrong = -1;  // the first value that is not finite
  QuantizationError error = {};

  void run(const float* values, uint8_t* codes, uint8_t* scales, bool keeps) {
    const float* begin = values + first * kMxfp4Block;
    const float* last = values + end * kMxfp4Block;
    const float* found = std::find_if_not(begin, last, [](float x) { return std::isfinite(x); });
    if (found != last)
      wrong = found - values;
    else
      quantize_mxfp4(begin, end - first, keeps, codes + first * kMxfp4BlockBytes, scales + first, error);
  }
};

// Whether there is a thread for it: a process may have no more of them.
template <typename Work>
bool begun(std::vector<std::thread>& threads, const Work& work) {
  try {
    threads.emplace_back(work);
    return true;
  } catch (const std::system_error&) {
    return false;
  }
}

py::tuple quantize(const py::object& values, const py::object& codes, const py::object& scales, bool keeps) {
  const Argument value("values", values);
  Argument code("codes", codes), scale("scales", scales);
  const int rows = scale.size(0), blocks = scale.size(1);
  scale.shape({rows, blocks});
  code.shape({rows, int64_t{blocks} * kMxfp4BlockBytes});
  value.shape({rows, int64_t{blocks} * kMxfp4Block});
  const float* from = value.read<float>();
  uint8_t *to = code.write<uint8_t>(), *by = scale.write<uint8_t>();
  const size_t count = size_t(rows) * blocks;
  std::vector<Part> parts(std::clamp<size_t>(count / kBlocksOfAThread, 1, usable_threads()));
  {
    py::gil_scoped_release release;
    std::vector<std::thread> threads;
    threads.reserve(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) {
      Part& part = parts[i];
      part = {count * i / parts.size(), count * (i + 1) / parts.size()};
      const auto work = [&part, from, to, by, keeps] { part.run(from, to, by, keeps); };
      if (i + 1 == parts.size() || !begun(threads, work)) work();
    }
    for (std::thread& thread : threads) thread.join();
  }
  QuantizationError error;
  const int64_t width = int64_t{blocks} * kMxfp4Block;
  for (const Part& part : parts) {
    CHECK(part.wrong < 0, "values[", part.wrong / width, ", ", part.wrong % width, "] is ", from[part.wrong],
          ", expected finite numbers");
    error.saturated += part.error.saturated;
    error.squared += part.error.squared;
    error.energy += part.error.energy;
    error.largest = std::max(error.largest, part.error.largest);
  }
  return py::make_tuple(error.saturated, error.largest, error.squared, error.energy);
}

py::object pack(const py::object& weight, const std::string& isa) {
  const Argument matrix("weight", weight);
  const int rows = matrix.size(0), width = matrix.size(1);
  matrix.shape({rows, width});
  const bf16* from = matrix.read_bf16();
  const int first = cpu::first_upper_byte({from, nullptr, rows, width});
  if (first < 0) return py::none();
  const cpu::Kernels& kernels = cpu::select_kernels(isa);
  const size_t row_bytes = cpu::packed_row_bytes(width);
  py::array_t<uint8_t> packed({size_t(rows), row_bytes});
  std::fill_n(packed.mutable_data(), packed.size(), uint8_t{0});  // a row's last half block may leave some
  py::array_t<uint64_t> marks(rows);
  py::array_t<uint8_t> upper({rows, cpu::kUpperBytes});
  for (int row = 0; row < rows; ++row) {
    const cpu::PackedRow found =
        kernels.pack_row(from + size_t(row) * width, width, first, packed.mutable_data() + row * row_bytes);
    marks.mutable_at(row) = found.marks;
    std::copy_n(found.upper, cpu::kUpperBytes, upper.mutable_data(row, 0));
  }
  return py::make_tuple(first, packed, marks, upper);
}

}  // namespace

void bind_numbers(py::module_& m, ModelClass& model) {
  model
      .def("read_rows", &read_rows, py::arg("name"), py::arg("first"), py::arg("count"),
           "uint8 [count, bytes of a row]: rows of a tensor as the checkpoint stores them, matrices of experts one "
           "after "
           "the other, single numbers as rows of two bytes.")
      .def("write_rows", &write_rows, py::arg("name"), py::arg("first"), py::arg("rows"),
           "Overwrites them, between the steps before and after this call.");
  m.def("decode_mxfp4", &decode, py::arg("codes"), py::arg("scales"),
        "float32 [rows, 32 * blocks] of uint8 codes [rows, 16 * blocks] and scales [rows, blocks].");
  m.def("quantize_mxfp4", &quantize, py::arg("values"), py::arg("codes"), py::arg("scales"), py::arg("keeps"),
        "Quantises float32 values [rows, 32 * blocks] into codes and scales; returns how many were saturated, the "
        "largest error, the sum of squared errors and that of squared values. keeps: a block whose scale represents "
        "the new values exactly keeps it.");
  m.def(
      "pack_bf16", &pack, py::arg("weight"), py::arg("isa") = "",
      "(first upper byte, uint8 [rows, bytes of a row], uint64 [rows] marks, uint8 [rows, 16] their upper bytes) of a "
      "matrix, bf16 bits [rows, width], as dense_dtype 'packed' holds it (csrc/cpu/packed_weights.h), or None for one "
      "that it keeps as stored.");
}

}  // namespace gptoss::bindings
