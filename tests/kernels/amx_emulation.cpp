// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Runs the AMX level on a processor without AMX: each tile instruction of the compiled code traps, and the handler
// does what Intel's manual (SDM volume 2, "TDPBF16PS" and its neighbours) says. Prints, for numbers of channels, the
// relative error of the convolution and of the weight gradient against plain loops, then whether the check at
// start-up accepts the level, and whether it still does when a product is wrong.
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>

#include "common/dispatch.h"
#include "plain_loops.h"

namespace kestrel {
extern const Level level_amx_bf16;
}

namespace {

struct Tiles {
  bool configured;
  uint8_t rows[8];
  uint16_t bytes[8];
  uint8_t data[8][16][64];
};
thread_local Tiles tiles;
bool spoilt = false;

[[noreturn]] void fail(const char* why) {
  (void)!write(2, why, std::strlen(why));
  _exit(3);
}

float widen(const uint8_t* from) {
  uint16_t half;
  std::memcpy(&half, from, 2);
  return as_float(half);
}

void configure(const uint8_t* from) {
  if (from[0] != 1 || from[1] != 0) fail("palette or start row\n");
  for (int i = 2; i < 16; ++i)
    if (from[i]) fail("reserved bytes of the tile configuration\n");
  for (int t = 0; t < 8; ++t) {
    std::memcpy(&tiles.bytes[t], from + 16 + 2 * t, 2);
    tiles.rows[t] = from[48 + t];
    if (tiles.rows[t] > 16 || tiles.bytes[t] > 64) fail("tile too large\n");
  }
  std::memset(tiles.data, 0xff, sizeof(tiles.data));  // NaN: what was not loaded must not count
  tiles.configured = true;
}

void dot(int sum, int left, int right) {
  for (int m = 0; m < tiles.rows[sum]; ++m) {
    for (int n = 0; n < tiles.bytes[sum] / 4; ++n) {
      float even = 0, odd = 0, value;
      for (int k = 0; k < tiles.bytes[left] / 4; ++k) {
        even = std::fma(widen(&tiles.data[left][m][4 * k]), widen(&tiles.data[right][k][4 * n]), even);
        odd = std::fma(widen(&tiles.data[left][m][4 * k + 2]), widen(&tiles.data[right][k][4 * n + 2]), odd);
      }
      std::memcpy(&value, &tiles.data[sum][m][4 * n], 4);
      value += even + odd + (spoilt && m == 3 && n == 2 ? 1.0f : 0.0f);
      std::memcpy(&tiles.data[sum][m][4 * n], &value, 4);
    }
  }
}

constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

// A three-byte VEX instruction of map 0F38 (SDM volume 2, section 2.3).
struct Instruction {
  int prefix, opcode, mode, reg, rm, vvvv;
  uint8_t* address = nullptr;  // without the index
  int64_t stride = 0;
  int size = 5;

  Instruction(const uint8_t* code, const greg_t* values) {
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) fail("not a tile instruction\n");
    prefix = code[2] & 3, vvvv = ~code[2] >> 3 & 15, opcode = code[3];
    mode = code[4] >> 6, reg = code[4] >> 3 & 7, rm = code[4] & 7;
    if (mode == 3) return;
    const int high = ~code[1] >> 5;  // bits B, X of the register numbers
    int base = rm;
    if (rm == 4) {
      base = code[5] & 7;
      const int index = (code[5] >> 3 & 7) | (high & 2) << 2;
      if (index != 4) stride = values[kRegisters[index]] << (code[5] >> 6);
      ++size;
    }
    if (mode == 0 && (base & 7) == 5) fail("address without a base\n");
    address = reinterpret_cast<uint8_t*>(values[kRegisters[base | (high & 1) << 3]]);
    int32_t moved = 0;
    if (mode == 1) moved = static_cast<int8_t>(code[size]);
    if (mode == 2) std::memcpy(&moved, code + size, 4);
    size += mode == 1 ? 1 : mode == 2 ? 4 : 0;
    address += moved;
  }
};

enum Prefix { kNone, k66, kF3, kF2 };

void run(const Instruction& now) {
  const auto is = [&](int opcode, int prefix) { return now.opcode == opcode && now.prefix == prefix; };
  if (is(0x49, kNone) && now.mode != 3) return configure(now.address);
  if (!tiles.configured) fail("tile instruction without a configuration\n");
  if (is(0x49, kNone))
    tiles.configured = false;
  else if (is(0x49, kF2))
    std::memset(tiles.data[now.reg], 0, sizeof(tiles.data[0]));
  else if (is(0x4b, kF2))
    for (int r = 0; r < tiles.rows[now.reg]; ++r)
      std::memcpy(tiles.data[now.reg][r], now.address + r * now.stride, tiles.bytes[now.reg]);
  else if (is(0x4b, kF3))
    for (int r = 0; r < tiles.rows[now.reg]; ++r)
      std::memcpy(now.address + r * now.stride, tiles.data[now.reg][r], tiles.bytes[now.reg]);
  else if (is(0x5c, kF3))
    dot(now.reg, now.rm, now.vvvv);
  else
    fail("unknown tile instruction\n");
}

void on_illegal_instruction(int, siginfo_t*, void* context) {
  greg_t* values = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const Instruction now(reinterpret_cast<const uint8_t*>(values[REG_RIP]), values);
  run(now);
  values[REG_RIP] += now.size;
}

}  // namespace

int main() {
  struct sigaction action = {};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
  constexpr int kChannels[][2] = {{64, 64}, {4, 32}, {33, 130}, {5, 3}, {96, 17}};
  for (const auto& channels : kChannels)
    std::printf("forward %d %d %.2e\n", channels[0], channels[1],
                convolution_error<uint16_t>(kestrel::level_amx_bf16, 150, 170, 3, channels[0], channels[1]));
  std::printf("accepted %d\n", kestrel::multiplies_correctly(kestrel::level_amx_bf16));
  spoilt = true;
  std::printf("accepted %d\n", kestrel::multiplies_correctly(kestrel::level_amx_bf16));
}
