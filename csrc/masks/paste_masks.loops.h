// SPDX-License-Identifier: BSD-3-Clause
// The loops over the pixels of a pasted mask.
#pragma once

#include <cstdint>

#include "../isa/loops.h"

namespace fastdet::cpu {

// S is float or double.
template <typename S>
struct FASTDET_EXPORT PasteLoops {
  // stretch_row: out[x] = the value of a row of a mask at column tap x (see mask_paste.h), x in [0,
  // n). paste_row: n values between two such rows; paste_row_above compares them with a threshold.
  void (*stretch_row)(const S* row, const int32_t* index, const S* fraction, int64_t n, S* out);
  void (*paste_row)(const S* above, const S* below, S fraction, int64_t n, S* out);
  void (*paste_row_above)(const S* above, const S* below, S fraction, S threshold, int64_t n,
                          bool* out);

  // out[i] = whether the value between values[i] and values[i + 1] is above the threshold, i in [0,
  // n).
  void (*paste_column_above)(const S* values, const S* fraction, S threshold, int64_t n,
                             uint8_t* out);
};

}  // namespace fastdet::cpu
