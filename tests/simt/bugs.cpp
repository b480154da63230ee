// simt_bugs                                  lists: name, form, who finds it
// simt_bugs NAME right|wrong SEED [COUNT]    runs a form under COUNT schedules from SEED on, and prints a line
//                                            "seed: error" for each that fails; exits with 1 if one did
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cases.h"

namespace {

using namespace gptoss::simulated::cases;

// No case takes more turns than this without a barrier or an end, unless it hangs.
constexpr size_t kPatience = 20'000;

std::vector<Case> all_cases() {
  std::vector<Case> all;
  for (auto part : {barrier_cases, warp_cases, copy_cases, bulk_cases, wgmma_cases, block_cases, primitive_cases})
    for (const Case& c : part()) all.push_back(c);
  return all;
}

const char* name(Finder finder) {
  switch (finder) {
    case Finder::simulator:
      return "simulator";
    case Finder::result:
      return "result";
    case Finder::address:
      return "address";
    case Finder::thread:
      return "thread";
    case Finder::nobody:
      break;
  }
  return "nobody";
}

int list() {
  for (const Case& c : all_cases()) {
    std::printf("%s right nobody\n", c.name);
    if (c.wrong) std::printf("%s wrong %s\n", c.name, name(c.finder));
  }
  return 0;
}

bool passes(Form form, uint64_t seed) {
  simt::set_seed(seed);
  try {
    form(seed);
  } catch (const gptoss::Error& error) {
    std::printf("%llu: %s\n", static_cast<unsigned long long>(seed), error.what());
    return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) return list();
  if (argc == 4 || argc == 5)
    for (const Case& c : all_cases()) {
      if (std::strcmp(c.name, argv[1]) != 0) continue;
      const Form form = std::strcmp(argv[2], "right") == 0 ? c.right : c.wrong;
      if (!form) break;
      simt::set_patience(kPatience);
      const uint64_t first = std::strtoull(argv[3], nullptr, 10);
      const uint64_t count = argc == 5 ? std::strtoull(argv[4], nullptr, 10) : 1;
      bool passed = true;
      for (uint64_t seed = first; seed < first + count; ++seed) passed = passes(form, seed) && passed;
      return passed ? 0 : 1;
    }
  std::fputs("usage: simt_bugs [NAME right|wrong SEED [COUNT]]; without arguments it lists the names\n", stderr);
  return 2;
}
