// SPDX-License-Identifier: BSD-3-Clause
// Averages a mask, one byte for each pixel, over the bins of a box: first the rows are merged, then
// the columns, as in RoIAlign.
#include "crop_masks.loops.h"

#include "../roi_align/merge_rows.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

template <typename S>
void crop_mask(const uint8_t* mask, int64_t row_stride, const Taps<S>& rows, const Taps<S>& columns,
               S* out, S* __restrict merged) {
  const int64_t stride = merged_stride(columns.span);
  for (int64_t first = 0; first < rows.bins; first += kMergedRows) {
    const int64_t bins = min_of(rows.bins - first, kMergedRows);
    for (int64_t b = 0; b < bins; ++b)
      merge_span(mask + columns.low, row_stride, rows, first + b, columns.span,
                 merged + b * stride);
    merge_columns(merged, stride, bins, columns, out + first * columns.bins, columns.bins, 1);
  }
}

template <typename S>
constexpr CropLoops<S> kLoops = {
    .crop_mask = crop_mask<S>,
};

}  // namespace

FASTDET_LOOPS(CropLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(CropLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
