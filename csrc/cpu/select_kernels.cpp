// Which instruction sets were compiled in, and which of them this host has.
#include <cstdlib>

#include "core/error.h"
#include "cpu/amx.h"
#include "cpu/kernels.h"

namespace gptoss::cpu {

extern const Kernels kernels_portable;
#if defined(GPTOSS_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> found{&kernels_portable};
#if defined(GPTOSS_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back(&kernels_avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")) {
      found.push_back(&kernels_avx512);
      if (amx_problem().empty()) found.push_back(&amx_kernels());
    }
  }
#endif
  return found;
}

const Kernels& select_kernels(const std::string& isa) {
  const std::vector<const Kernels*> found = available_kernels();
  const char* usual = std::getenv("GPTOSS_NATIVE_ISA");
  const std::string wanted = isa.empty() && usual ? usual : isa;
  if (wanted.empty()) return *found.back();
  std::string names;
  for (const Kernels* kernels : found) {
    if (wanted == kernels->isa) return *kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->isa);
  }
  for (const Kernels* kernels : emulated_kernels())
    if (wanted == kernels->isa) return *kernels;
  if (wanted == "amx")
    names += "; " + (found.back()->isa == std::string("avx512") ? amx_problem() : "amx needs avx512");
  CHECK(false, isa.empty() ? "GPTOSS_NATIVE_ISA" : "isa", " '", wanted,
        "' is not available; this host and build have: ", names);
}

}  // namespace gptoss::cpu
