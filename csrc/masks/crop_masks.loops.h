// SPDX-License-Identifier: BSD-3-Clause
// The loop that averages a mask over the bins of a box.
#pragma once

#include <cstdint>

#include "../isa/loops.h"
#include "../roi_align/taps.h"

namespace fastdet::cpu {

// S is float or double.
template <typename S>
struct FASTDET_EXPORT CropLoops {
  // out (rows.bins, columns.bins) = the averages of a mask by its taps. The pixels of a row must be
  // adjacent. `merged` has room for kMergedRows * merged_stride(columns.span) finite values.
  void (*crop_mask)(const uint8_t* mask, int64_t row_stride, const Taps<S>& rows,
                    const Taps<S>& columns, S* out, S* merged);
};

}  // namespace fastdet::cpu
