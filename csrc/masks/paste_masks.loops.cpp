// SPDX-License-Identifier: BSD-3-Clause
// Rows of a pasted mask; mask_paste.h explains the arithmetic.
#include "paste_masks.loops.h"

#include "mask_paste.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

// out[x] = the value of a bordered row of a mask at column tap x.
template <typename S>
void stretch_row(const S* __restrict__ row, const int32_t* __restrict__ index,
                 const S* __restrict__ fraction, int64_t n, S* __restrict__ out) {
  for (int64_t x = 0; x < n; ++x) out[x] = between(row[index[x]], row[index[x] + 1], fraction[x]);
}

template <typename S>
void paste_row(const S* __restrict__ above, const S* __restrict__ below, S fraction, int64_t n,
               S* __restrict__ out) {
  for (int64_t x = 0; x < n; ++x) out[x] = between(above[x], below[x], fraction);
}

template <typename S>
void paste_row_above(const S* __restrict__ above, const S* __restrict__ below, S fraction,
                     S threshold, int64_t n, bool* __restrict__ out) {
  for (int64_t x = 0; x < n; ++x) out[x] = between(above[x], below[x], fraction) > threshold;
}

template <typename S>
void paste_column_above(const S* __restrict__ values, const S* __restrict__ fraction, S threshold,
                        int64_t n, uint8_t* __restrict__ out) {
  for (int64_t i = 0; i < n; ++i)
    out[i] = between(values[i], values[i + 1], fraction[i]) > threshold;
}

template <typename S>
constexpr PasteLoops<S> kLoops = {
    .stretch_row = stretch_row<S>,
    .paste_row = paste_row<S>,
    .paste_row_above = paste_row_above<S>,
    .paste_column_above = paste_column_above<S>,
};

}  // namespace

FASTDET_LOOPS(PasteLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(PasteLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
