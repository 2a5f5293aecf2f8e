// SPDX-License-Identifier: BSD-3-Clause
// Where two rows of a mask differ. Most rows equal the row above in most places, so 64 pixels get
// one test; only where they differ is each word of 8 pixels looked at.
#include "mask_rle.loops.h"

#include <bit>

#include "../isa/lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

constexpr int64_t kWord = 8, kGroup = 64;
static_assert(std::endian::native == std::endian::little && kGroup % kVectorBytes == 0);

// The changes of [begin, end), a whole number of words. Returns the end of the places.
__attribute__((always_inline)) inline int32_t* add_changes(const uint8_t* above, const uint8_t* row,
                                                           int64_t begin, int64_t end,
                                                           int32_t* places) {
  for (int64_t x = begin; x < end; x += kWord) {
    uint64_t a, b;
    __builtin_memcpy(&a, above + x, kWord);
    __builtin_memcpy(&b, row + x, kWord);
    for (uint64_t differs = a ^ b; differs != 0;) {
      const int byte = std::countr_zero(differs) / 8;
      *places++ = static_cast<int32_t>(x + byte);
      differs &= ~(uint64_t(0xff) << (8 * byte));
    }
  }
  return places;
}

int64_t find_changes(const uint8_t* above, const uint8_t* row, int64_t n, int32_t* places) {
  int32_t* end = places;
  int64_t x = 0;
  for (; x + kGroup <= n; x += kGroup) {
    Lanes<uint8_t> differs = {};
    for (int64_t v = x; v < x + kGroup; v += kVectorBytes)
      differs |= load_lanes(above + v) ^ load_lanes(row + v);
    if (any_lane(differs != Lanes<uint8_t>{})) end = add_changes(above, row, x, x + kGroup, end);
  }
  const int64_t words = n / kWord * kWord;
  end = add_changes(above, row, x, words, end);
  for (x = words; x < n; ++x)
    if (above[x] != row[x]) *end++ = static_cast<int32_t>(x);
  return end - places;
}

constexpr MaskEdgeLoops kLoops = {.find_changes = find_changes};

}  // namespace

FASTDET_LOOPS(MaskEdgeLoops) { return kLoops; }

}  // namespace fastdet::cpu::FASTDET_ISA
