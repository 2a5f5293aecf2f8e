// SPDX-License-Identifier: BSD-3-Clause
// RoIAlign of the mask of one box, with an adaptive grid, by one block. 8 rows of bins at a time
// are merged along y into 256 columns in shared memory, with one thread for each column. So the
// bytes of a mask are read from adjacent addresses, once or twice. Then 8 x 32 threads, one for
// each bin, sum the columns that their samples read. A large box takes several rounds.
#pragma once

#include "../device/launch.cuh"
#include "../geometry/bilinear.h"
#include "mask_batch.h"

namespace fastdet::cuda {

// One block for each of n items, up to a grid that fills any GPU; beyond that, with a stride.
inline dim3 grid_of(int64_t n) {
  return dim3(static_cast<unsigned>(std::min<int64_t>(n, 1 << 16)));
}

template <typename S>
struct MaskCropper {
  static constexpr int kRows = 8, kColumns = 32, kChunk = kThreads, kTaps = 64;
  static_assert(kRows * kColumns == kThreads, "one thread a bin");

  // For each row of bins, the rows of the mask that it reads and their weights. If there are more
  // than kTaps, they come in parts.
  RoiAxis<double> y, x;
  const uint8_t* mask;
  int64_t index[kRows][kTaps];
  S weight[kRows][kTaps];
  int count[kRows];
  int64_t next[kRows];
  int more;
  S merged[kRows][kChunk];

  // Calls out(i, j, value) for each bin. All threads call it. `match` may be no index of a mask.
  template <typename Out>
  __device__ void crop(const MaskBatch& masks, int64_t image, int64_t match, const Box<S>& box,
                       int64_t height, int64_t width, const Out& out) {
    __syncthreads();
    if (threadIdx.x == 0) {
      y = axis(box.y1, box.y2, height), x = axis(box.x1, box.x2, width);
      if (!masks.has(match)) y.samples = 0;
      mask = masks.mask(image, masks.has(match) ? match : 0);
    }
    __syncthreads();
    const int row = threadIdx.x / kColumns, column = threadIdx.x % kColumns;
    for (int64_t i = 0; i < height; i += kRows) {
      const int rows = static_cast<int>(min_of<int64_t>(kRows, height - i));
      for (int64_t j = 0; j < width; j += kColumns) {
        const S sum = bin(masks, i, rows, j, min_of<int64_t>(j + kColumns, width), row, column);
        if (row < rows && j + column < width) out(i + row, j + column, sum);
      }
    }
  }

 private:
  static __device__ RoiAxis<double> axis(S low, S high, int64_t bins) {
    return roi_axis_in_float64(low, high, S(1), false, bins, 0);
  }

  // The sum of this thread's bin, of rows [i, i + rows) and columns [j, end).
  __device__ S bin(const MaskBatch& masks, int64_t i, int rows, int64_t j, int64_t end, int row,
                   int column) {
    S sum = S(0);
    if (y.samples == 0 || x.samples == 0) return sum;  // the same for all threads
    const SampleRange span = columns_of(j, end, masks.width);
    bool from_start = true;
    do {
      fill(i, rows, masks.height, from_start);
      from_start = false;
      for (int64_t first = span.begin; first < span.end; first += kChunk) {
        merge(masks, rows, first);
        if (row < rows && j + column < end) sum += pick(j + column, row, first, masks.width);
        __syncthreads();
      }
    } while (more);
    return sum / (static_cast<S>(y.samples) * static_cast<S>(x.samples));
  }

  // The columns of the mask that bins [j, end) can read.
  __device__ SampleRange columns_of(int64_t j, int64_t end, int64_t size) const {
    const double a = sample_position(x, j, 0), b = sample_position(x, end - 1, x.samples - 1);
    const double last = static_cast<double>(size);
    const double low = max_of(min_of(a, b) - 1, 0.), high = min_of(max_of(a, b) + 2, last);
    return {static_cast<int64_t>(min_of(low, last)), static_cast<int64_t>(max_of(high, 0.))};
  }

  // Loads the next part of the taps of each row of bins, one thread for each row.
  __device__ void fill(int64_t i, int rows, int64_t size, bool from_start) {
    __syncthreads();
    if (threadIdx.x == 0) more = 0;
    __syncthreads();
    const int row = threadIdx.x;
    if (row < rows) {
      const SampleRange range = samples_within(y, i + row, -1., static_cast<double>(size));
      int64_t s = from_start ? range.begin : next[row];
      int n = 0;
      for (; s < range.end && n + 2 <= kTaps; ++s) {
        const BilinearTap<double> tap = bilinear_tap(sample_position(y, i + row, s), size);
        n = add(row, n, tap.index[0], static_cast<S>(tap.weight[0]));
        n = add(row, n, tap.index[1], static_cast<S>(tap.weight[1]));
      }
      count[row] = n;
      next[row] = s;
      if (s < range.end) more = 1;
    }
    __syncthreads();
  }

  // Positions rise with the samples, so an index that the row already has is one of the last two.
  __device__ int add(int row, int n, int64_t at, S share) {
    if (share == S(0)) return n;
    for (int k = n - 1; k >= 0 && k >= n - 2; --k) {
      if (index[row][k] == at) {
        weight[row][k] += share;
        return n;
      }
    }
    index[row][n] = at;
    weight[row][n] = share;
    return n + 1;
  }

  // Merges columns [first, first + kChunk) for each row of bins.
  __device__ void merge(const MaskBatch& masks, int rows, int64_t first) {
    const int64_t at = first + threadIdx.x;
    if (at < masks.width) {
      for (int row = 0; row < rows; ++row) {
        S sum = S(0);
        for (int k = 0; k < count[row]; ++k)
          sum += weight[row][k] * static_cast<S>(mask[index[row][k] * masks.row_stride + at]);
        merged[row][threadIdx.x] = sum;
      }
    }
    __syncthreads();
  }

  // The sum of the samples of bin j over merged columns [first, first + kChunk).
  __device__ S pick(int64_t j, int row, int64_t first, int64_t size) const {
    S sum = S(0);
    const SampleRange range =
        samples_within(x, j, static_cast<double>(first) - 1, static_cast<double>(first + kChunk));
    for (int64_t s = range.begin; s < range.end; ++s) {
      const BilinearTap<double> tap = bilinear_tap(sample_position(x, j, s), size);
      const int64_t a = tap.index[0] - first, b = tap.index[1] - first;
      // An index of weight 0 may lie outside the columns.
      if (a >= 0 && a < kChunk && tap.weight[0] != 0)
        sum += static_cast<S>(tap.weight[0]) * merged[row][a];
      if (b >= 0 && b < kChunk && tap.weight[1] != 0)
        sum += static_cast<S>(tap.weight[1]) * merged[row][b];
    }
    return sum;
  }
};

}  // namespace fastdet::cuda
