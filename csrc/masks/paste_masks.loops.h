// SPDX-License-Identifier: BSD-3-Clause
// Included by loops.cpp inside the namespace of an ISA. See ../mask_paste.h for the arithmetic.

// out[x] = a bordered row of a mask at the column taps.
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
