// _native.amx, in builds for tests: tile registers on their own, and products as the kernels make them.
#include <pybind11/stl.h>

#include <cstring>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "core/buffer.h"
#include "cpu/amx.h"
#include "cpu/q8_weights.h"
#include "tile_state.h"
#include "trap.h"

namespace gptoss::bindings {
namespace {

using emulated::TileState;

void configure(TileState& state, const py::bytes& operand) {
  const std::string_view bytes(operand);
  CHECK(bytes.size() == sizeof(cpu::TileConfig), "the operand has ", bytes.size(), " bytes");
  cpu::TileConfig config;
  std::memcpy(&config, bytes.data(), sizeof config);
  state.configure(config);
}

// Memory of a tile: as many rows and bytes as a register may have, at least.
const Argument& tile_memory(const Argument& memory) {
  CHECK(memory.dims() == 2 && memory.size(0) >= TileState::kRows && memory.size(1) >= TileState::kRowBytes,
        "memory must hold a whole tile");
  return memory;
}

// Rows as a table lays them out, with the index list that the products take them by.
struct LaidOut {
  Buffer<uint8_t> bytes;
  std::vector<int32_t> index;
  cpu::Rows<uint8_t> rows;
  int count;

  LaidOut(const cpu::Kernels& kernels, const Argument& q8, const Argument& scale, const py::object& order, int divisor)
      : bytes(size_t(q8.size(0)) * kernels.laid_out_bytes(q8.size(1))),
        rows{bytes.data(), kernels.laid_out_bytes(q8.size(1))},
        count(q8.size(0)) {
    const int width = q8.size(1);
    scale.shape({count, width / kMxfp4Block});
    for (int r = 0; r < count; ++r)
      kernels.lay_out(q8.read<int8_t>() + size_t(r) * width, scale.read<float>() + size_t(r) * (width / kMxfp4Block),
                      width, bytes.data() + size_t(r) * rows.stride);
    if (order.is_none()) return;
    index = Argument("index", order).indices(0, count * divisor);
    rows.index = index.data(), rows.divisor = divisor;
    count = static_cast<int>(index.size());
  }
};

void matmul_mxfp4_q8(const std::string& isa, const py::object& q8, const py::object& scale, const py::object& index,
                     int divisor, const py::object& blocks, const py::object& scales, int columns,
                     const py::object& out) {
  const cpu::Kernels& kernels = cpu::select_kernels(isa);
  const Argument x("q8", q8), codes("blocks", blocks), exponents("scales", scales);
  const LaidOut rows(kernels, x, Argument("scale", scale), index, divisor);
  const int width = x.size(1);
  codes.shape({columns, width / kMxfp4Block, kMxfp4BlockBytes});
  exponents.shape({columns, width / kMxfp4Block});
  Argument to("out", out);
  CHECK(to.size(0) >= rows.count && to.size(1) >= columns, "out is too small");
  kernels.matmul_mxfp4_q8(rows.rows, rows.count, {codes.read<uint8_t>(), exponents.read<uint8_t>()}, columns, width,
                          to.write<float>(), static_cast<size_t>(to.size(1)));
}

void matmul_q8(const std::string& isa, const py::object& q8, const py::object& scale, const py::object& index,
               int divisor, const py::object& weight, const py::object& out) {
  const cpu::Kernels& kernels = cpu::select_kernels(isa);
  const Argument x("q8", q8), w("weight", weight);
  const LaidOut rows(kernels, x, Argument("scale", scale), index, divisor);
  const int width = x.size(1), columns = w.size(0);
  w.shape({columns, width});
  Buffer<int8_t> bytes(size_t(columns) * cpu::q8_row_bytes(width));
  Buffer<bf16> scales(size_t(columns) * cpu::q8_row_scales(width));
  for (int c = 0; c < columns; ++c)
    kernels.quantize_weights(w.read_bf16() + size_t(c) * width, width, bytes.data() + c * cpu::q8_row_bytes(width),
                             scales.data() + c * cpu::q8_row_scales(width));
  Argument to("out", out);
  CHECK(to.size(0) >= rows.count && to.size(1) >= columns, "out is too small");
  kernels.matmul_q8(rows.rows, rows.count, {bytes.data(), scales.data()}, columns, width, to.write<float>(),
                    static_cast<size_t>(to.size(1)));
}

}  // namespace

void bind_amx(py::module_& m) {
  py::module_ amx = m.def_submodule("amx", "Emulated tile registers, and the products made with them.");
  py::class_<TileState>(amx, "TileState", "The registers of LDTILECFG to TILERELEASE.")
      .def(py::init())
      .def("configure", configure, py::arg("operand"))
      .def("release", &TileState::release)
      .def("zero", &TileState::zero, py::arg("tile"))
      .def("load",
           [](TileState& state, int tile, const py::object& memory) {
             const Argument from("memory", memory);
             state.load(tile, tile_memory(from).read<uint8_t>(), static_cast<size_t>(from.size(1)));
           })
      .def("store",
           [](TileState& state, int tile, const py::object& memory) {
             Argument to("memory", memory);
             tile_memory(to);
             state.store(tile, to.write<uint8_t>(), static_cast<size_t>(to.size(1)));
           })
      .def("dot", &TileState::dot, py::arg("sum"), py::arg("a"), py::arg("b"))
      .def("bytes", [](const TileState& state, int tile) {
        CHECK(tile >= 0 && tile < TileState::kTiles, "there is no tile ", tile);
        return py::array_t<uint8_t>({TileState::kRows, TileState::kRowBytes}, state.bytes(tile));
      });
  amx.def("matmul_mxfp4_q8", matmul_mxfp4_q8);
  amx.def("matmul_q8", matmul_q8);
  amx.def("same_products", [](const std::string& a, const std::string& b) {
    return cpu::same_products(cpu::select_kernels(a), cpu::select_kernels(b));
  });
  amx.def("trapped_instructions", emulated::trapped_instructions, "Of the calling thread.");
  amx.def("is_configured", [] { return emulated::tile_state().is_configured(); }, "Of the calling thread.");
}

}  // namespace gptoss::bindings
