// SPDX-License-Identifier: BSD-3-Clause
// The loop that finds the anchors with small random keys.
#pragma once

#include <cstdint>

#include "../isa/loops.h"
#include "sample_key.h"

namespace fastdet::cpu {

// An anchor that may be sampled. By key, then by anchor: ties go to the lower anchor.
struct SampleCandidate {
  uint32_t key;
  bool positive;
  int64_t anchor;
};

// Keys below these bounds are wanted.
struct SampleBounds {
  uint32_t negative, positive;
};

struct FASTDET_EXPORT SampleLoops {
  // Appends to `found` the positives and negatives among `index`, the matches of anchors
  // [first, first + n), whose keys are below the bounds, in order. Returns how many.
  int64_t (*find_candidates)(const int64_t* index, int64_t first, int64_t n, SampleSeed seed,
                             SampleBounds below, SampleCandidate* found);
};

}  // namespace fastdet::cpu
