#include "trap.h"

#include <signal.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "tile_state.h"

namespace gptoss::emulated {
namespace {

thread_local long trapped = 0;
struct sigaction earlier;

// An instruction with a prefix of three bytes: c4, RXB and the opcode's map, W vvvv L pp; opcode, ModRM and operands.
struct Instruction {
  int prefix;  // pp: 0 none, 1 66, 2 f3, 3 f2
  int opcode;
  bool in_memory;
  int reg, rm, vvvv;
  uint64_t address, stride;  // of an operand in memory: stride is the scaled index
  int length;
};

uint64_t general_register(const mcontext_t& machine, int number) {
  static constexpr int order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<uint64_t>(machine.gregs[order[number]]);
}

int64_t displacement(const uint8_t* at, int bytes) {
  if (bytes == 1) return static_cast<int8_t>(*at);
  int32_t value = 0;
  if (bytes == 4) std::memcpy(&value, at, sizeof value);
  return value;
}

// Of map 0f38 without W and L, where all of AMX is; false for others.
bool decode(const uint8_t* code, const mcontext_t& machine, Instruction& found) {
  if (code[0] != 0xc4 || (code[1] & 31) != 2 || (code[2] & 0x84) != 0) return false;
  const bool no_r = code[1] & 0x80, no_x = code[1] & 0x40, no_b = code[1] & 0x20;
  found = {.prefix = code[2] & 3,
           .opcode = code[3],
           .in_memory = code[4] >> 6 != 3,
           .reg = (code[4] >> 3 & 7) + (no_r ? 0 : 8),
           .rm = (code[4] & 7) + (no_b ? 0 : 8),
           .vvvv = 15 - (code[2] >> 3 & 15),
           .address = 0,
           .stride = 0,
           .length = 5};
  if (!found.in_memory) return true;
  const int mod = code[4] >> 6;
  int moved = mod == 1 ? 1 : mod == 2 ? 4 : 0;
  if ((found.rm & 7) == 4) {  // a further byte: scale, index, base
    const uint8_t sib = code[found.length++];
    const int index = (sib >> 3 & 7) + (no_x ? 0 : 8), base = (sib & 7) + (no_b ? 0 : 8);
    if (index != 4) found.stride = general_register(machine, index) << (sib >> 6);
    if (mod == 0 && (base & 7) == 5)
      moved = 4;
    else
      found.address = general_register(machine, base);
  } else if (mod == 0 && (found.rm & 7) == 5) {  // relative to the next instruction
    moved = 4;
    found.address = static_cast<uint64_t>(machine.gregs[REG_RIP]) + static_cast<uint64_t>(found.length + moved);
  } else {
    found.address = general_register(machine, found.rm);
  }
  found.address += static_cast<uint64_t>(displacement(code + found.length, moved));
  found.length += moved;
  return true;
}

bool run(const Instruction& found, TileState& state) {
  constexpr int kNone = 0, kF3 = 2, kF2 = 3;
  const auto at = [](uint64_t address) { return reinterpret_cast<void*>(address); };
  if (found.opcode == 0x49 && found.prefix == kNone && found.in_memory && found.reg == 0) {  // ldtilecfg
    cpu::TileConfig config;
    std::memcpy(&config, at(found.address + found.stride), sizeof config);
    state.configure(config);
  } else if (found.opcode == 0x49 && found.prefix == kNone && !found.in_memory && found.reg == 0 && found.rm == 0) {
    state.release();
  } else if (found.opcode == 0x49 && found.prefix == kF2 && !found.in_memory && found.rm == 0) {
    state.zero(found.reg);
  } else if (found.opcode == 0x4b && found.prefix == kF2 && found.in_memory && (found.rm & 7) == 4) {
    state.load(found.reg, at(found.address), found.stride);
  } else if (found.opcode == 0x4b && found.prefix == kF3 && found.in_memory && (found.rm & 7) == 4) {
    state.store(found.reg, at(found.address), found.stride);
  } else if (found.opcode == 0x5e && found.prefix == kF2 && !found.in_memory) {
    state.dot(found.reg, found.rm, found.vvvv);
  } else {
    return false;
  }
  return true;
}

void on_illegal_instruction(int, siginfo_t*, void* context) {
  mcontext_t& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
  Instruction found;
  try {
    if (decode(reinterpret_cast<const uint8_t*>(machine.gregs[REG_RIP]), machine, found) && run(found, tile_state())) {
      machine.gregs[REG_RIP] += found.length;
      ++trapped;
      return;
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::abort();
  }
  sigaction(SIGILL, &earlier, nullptr);  // somebody else's: it is met again
}

}  // namespace

void trap_tile_instructions() {
  struct sigaction found = {};
  CHECK(sigaction(SIGILL, nullptr, &found) == 0, "SIGILL cannot be handled");
  if ((found.sa_flags & SA_SIGINFO) && found.sa_sigaction == on_illegal_instruction) return;
  earlier = found;
  found = {};
  found.sa_sigaction = on_illegal_instruction;
  found.sa_flags = SA_SIGINFO;
  CHECK(sigaction(SIGILL, &found, nullptr) == 0, "SIGILL cannot be handled");
}

long trapped_instructions() { return trapped; }

}  // namespace gptoss::emulated
