// SPDX-License-Identifier: BSD-3-Clause
// The anchors with small random keys. Few keys are below the bounds, so that a vector of anchors
// costs its hash, two comparisons of keys and the reading of its matches.
#include "sample_matches.loops.h"

#include "../isa/lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

constexpr int kKeys = kLanesOf<int32_t>, kMatches = kLanesOf<int64_t>;
static_assert(kKeys == 2 * kMatches);

int64_t find_candidates(const int64_t* index, int64_t first, int64_t n, SampleSeed seed,
                        SampleBounds below, SampleCandidate* found) {
  int64_t count = 0, i = 0;
  const auto add = [&](int64_t at, uint32_t key) {
    found[count++] = {key, index[at] >= 0, first + at};
  };
  Lanes<uint32_t> anchor;
  for (int lane = 0; lane < kKeys; ++lane) anchor[lane] = static_cast<uint32_t>(first + lane);
  // Keys have 24 bits, so they and their bounds may be compared as signed integers.
  const auto negative_below = all_lanes(static_cast<int32_t>(below.negative));
  const auto positive_below = all_lanes(static_cast<int32_t>(below.positive));
  for (; i + kKeys <= n; i += kKeys, anchor += kKeys) {
    const auto keys = sample_key<Lanes<uint32_t>>(seed, anchor);
    const auto key = __builtin_bit_cast(Lanes<int32_t>, keys);
    const Lanes<int64_t> left = load_lanes(index + i), right = load_lanes(index + i + kMatches);
    const uint32_t is_positive = lane_bits(left >= 0) | lane_bits(right >= 0) << kMatches;
    const uint32_t is_negative = lane_bits(left == -1) | lane_bits(right == -1) << kMatches;
    uint32_t hits = (lane_bits(key < negative_below) & is_negative) |
                    (lane_bits(key < positive_below) & is_positive);
    for (; hits != 0; hits &= hits - 1) {
      const int lane = __builtin_ctz(hits);
      add(i + lane, keys[lane]);
    }
  }
  for (; i < n; ++i) {
    const uint32_t key = sample_key(seed, static_cast<uint32_t>(first + i));
    if (index[i] >= 0 ? key < below.positive : index[i] == -1 && key < below.negative) add(i, key);
  }
  return count;
}

constexpr SampleLoops kLoops = {
    .find_candidates = find_candidates,
};

}  // namespace

FASTDET_LOOPS(SampleLoops) { return kLoops; }

}  // namespace fastdet::cpu::FASTDET_ISA
