// Where each tensor of the checkpoint lies, and in what form: for reading and writing the numbers of a loaded model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "model/config.h"
#include "model/ops.h"

namespace gptoss {

struct Weights;

// A tensor as rows of the checkpoint: a matrix's, those of all experts one after the other, or single numbers.
struct Place {
  // How a backend that has a form of its own keeps it.
  enum class Form { rows, dense, rotary, codes, scales };
  unsigned char* data;  // memory of the device
  Form form;
  int64_t rows;
  size_t row_bytes;    // in the checkpoint's form
  int out, in;         // of one matrix, for the forms other than `rows`
  Linear copy = {};    // of a dense matrix, where the backend multiplies with a copy of its own; see Linear::q8
  Screen screen = {};  // of lm_head
};

using Places = std::map<std::string, Place>;  // by Hugging Face name

// `weights` in the form that the backend reads.
Places places(const Config&, const Weights& weights);

}  // namespace gptoss
