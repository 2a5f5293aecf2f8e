// SPDX-License-Identifier: BSD-3-Clause
// The rows and columns of a map that RoIAlign's bins read, in the form that the loops take.
#pragma once

#include <cstdint>

namespace fastdet::cpu {

// One axis of a RoI: bin p is the sum of weight[i] * feature[index[i]] for begin[p] <= i and
// i < begin[p + 1]. All samples of a bin that read the same index are merged into one tap.
template <typename S>
struct Taps {
  const int64_t *begin, *index;
  const S* weight;
  int64_t bins;
  int64_t low, span;  // every index is in [low, low + span)
};

// The number of bins whose merged rows are kept at a time.
constexpr int64_t kMergedRows = 8;
// The number of columns merged at a time, in registers.
constexpr int64_t kColumnBlock = 16;
// The stride from one merged row to the next.
constexpr int64_t merged_stride(int64_t span) { return (span + 31) / 32 * 32; }

}  // namespace fastdet::cpu
