// SPDX-License-Identifier: BSD-3-Clause
// Included by loops.cpp inside the namespace of an ISA, after roi_align.loops.h: a mask is a plane
// of bytes, whose rows are merged and then their columns.

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
