// SPDX-License-Identifier: BSD-3-Clause
// The random key of an anchor: a hash of the anchor's index and of its image's seed. So the keys of
// an image need no memory, and every ISA and device gets the same ones.
#pragma once

#include <cstdint>

#include "../geometry/box.h"

namespace fastdet {

// An image's seed: the bits of a random number, in two halves.
struct SampleSeed {
  uint32_t low, high;

  FASTDET_HOST_DEVICE explicit SampleSeed(double number) {
    uint64_t bits;
    __builtin_memcpy(&bits, &number, sizeof bits);
    low = static_cast<uint32_t>(bits);
    high = static_cast<uint32_t>(bits >> 32);
  }
};

// A bijection in which each bit of x changes each bit of the result with a probability near 1/2:
// "lowbias32" of https://github.com/skeeto/hash-prospector. U is uint32_t or a vector of it.
template <typename U>
FASTDET_HOST_DEVICE U mixed_bits(U x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

constexpr uint32_t kSampleKeys = 1 << 24;  // as many as torch.rand has values

// Below kSampleKeys.
template <typename U>
FASTDET_HOST_DEVICE U sample_key(const SampleSeed& seed, U anchor) {
  return mixed_bits<U>(mixed_bits<U>(anchor ^ seed.low) ^ seed.high) >> 8;
}

}  // namespace fastdet
