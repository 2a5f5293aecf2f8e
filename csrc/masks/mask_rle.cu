// SPDX-License-Identifier: BSD-3-Clause
// Finds the edges of masks, with pixels counted column by column (see mask_rle.cpp). The first
// launch counts the edges of each column. Then sums over the columns say where the edges belong,
// and the last launch writes them, a thread for each column. In between the host waits for the
// number of edges, which is the size of the result.
//
// For pasted masks both launches find the edges. A column costs the rows of its mask times a
// bisection over its pixels, about 30 x 15, twice. For 100 masks of 170 columns in 800 x 1216 these
// are about 30,000 instructions of 530 warps, 16 million in all, 10 us on an H100, less than the
// launches and the wait.
//
// Given masks are read once. The first launch marks the edges in words of 32 rows of a column, an
// eighth of the bytes of the masks, and the last one reads the words. A thread takes 4 columns and
// loads 8 rows at a time, so that enough loads are in flight. For 100 masks of 800 x 1216 these are
// 97 MB of masks, and 12 MB of words that stay in the L2 cache between the launches: 33 us at 3.35
// TB/s. It takes about 14 million warp instructions, 15 us.
#include "../device/block_sum.cuh"
#include "../device/packs.cuh"
#include "../geometry/threshold.h"
#include "contract.h"
#include "pasted_masks.cuh"

namespace fastdet::cuda {

namespace {

// Columns of pasted masks, which are computed but never stored.
template <typename S>
struct PastedColumns {
  PastedMasks<S> masks;
  S threshold;

  // Calls visit(edge) in rising order.
  template <typename Visit>
  __device__ void for_each_edge(int64_t n, int64_t x, const Visit& visit) const {
    const PasteAxis<S> rows = masks.rows(n), columns = masks.columns(n);
    if (!columns.shows(x) || rows.begin >= rows.end) return;
    const BorderedMask<S> mask = masks.mask(n);
    const bool wraps = runs_on(rows, masks.image_height);
    bool on = false;
    if (wraps && columns.shows(x - 1))
      on = mask.at(paste_tap(rows, rows.end - 1), paste_tap(columns, x - 1)) > threshold;
    const int64_t column = x * masks.image_height;
    on = for_each_crossing(rows, mask, paste_tap(columns, x), on,
                           [&](int64_t y) { visit(column + y); });
    const int64_t end = column + rows.end;
    if (on && !(wraps && columns.shows(x + 1)) && end < masks.image_height * masks.image_width)
      visit(end);
  }

 private:
  // Calls visit(y) for each visible row at which the column crosses the threshold. `on`: whether
  // the pixel before is above it. Returns whether the last pixel is above it.
  template <typename Visit>
  __device__ bool for_each_crossing(const PasteAxis<S>& rows, const BorderedMask<S>& mask,
                                    const PasteTap<S>& column, bool on, const Visit& visit) const {
    for (int64_t y = rows.begin; y < rows.end;) {
      const int64_t i = paste_tap(rows, y).index, end = end_of_row(rows, i);
      const S above = mask.along(i, column), below = mask.along(i + 1, column);
      const auto is_on = [&](int64_t pixel) {
        return between(above, below, paste_tap(rows, pixel).fraction) > threshold;
      };
      if (is_on(y) != on) visit(y), on = !on;
      if (is_on(end - 1) != on) {
        on = !on;
        visit(first_pixel(y + 1, end - 1, [&](int64_t pixel) { return is_on(pixel) == on; }));
      }
      y = end;
    }
    return on;
  }
};

constexpr int kWordRows = 32;   // of a word
constexpr int kOwnColumns = 4;  // of a lane
constexpr int kRowsAtOnce = 8;  // loaded before the first one is looked at: the bits of a byte
constexpr int kStrip = kWarp * kOwnColumns;  // columns of a block

// The edges of masks (N, H, W) as bits: bit y % 32 of word (n, y / 32, x) is set if pixel (y, x)
// differs from the one before it, in the order by columns.
struct EdgeWords {
  uint32_t* words;  // (N, num_blocks, pitch)
  int64_t image_height, image_width;
  int64_t num_blocks;  // of kWordRows rows of a mask
  int64_t pitch;       // the width, rounded up to kOwnColumns

  __device__ uint32_t* at(int64_t n, int64_t block, int64_t x) const {
    return words + (n * num_blocks + block) * pitch + x;
  }

  template <typename Visit>
  __device__ void for_each_edge(int64_t n, int64_t x, const Visit& visit) const {
    constexpr int kAtOnce = 4;
    for (int64_t first = 0; first < num_blocks; first += kAtOnce) {
      uint32_t own[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) own[k] = first + k < num_blocks ? *at(n, first + k, x) : 0;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        for (uint32_t bits = own[k]; bits; bits &= bits - 1)
          visit(x * image_height + (first + k) * kWordRows + __ffs(bits) - 1);
    }
  }
};

// Bytes of 1 where the bytes of a and b differ, else of 0.
__device__ inline uint32_t differing(uint32_t a, uint32_t b) {
  const uint32_t x = a ^ b;
  return (((x & 0x7F7F7F7F) + 0x7F7F7F7F) | x) >> 7 & 0x01010101;
}

// The pixels of kOwnColumns columns of a mask, a byte for each. `wide`: every address from which it
// loads is a multiple of 4. Else only `count` columns exist.
template <bool wide>
__device__ uint32_t load_pixels(const uint8_t* pixels, int count) {
  if constexpr (wide) return *reinterpret_cast<const uint32_t*>(pixels);
  uint32_t word = 0;
#pragma unroll
  for (int c = 0; c < kOwnColumns; ++c)
    if (c < count) word |= uint32_t(pixels[c]) << (8 * c);
  return word;
}

// The words of the lane's columns, from x on, and of the rows from `first` on. `mask` is (H, W).
template <bool wide>
__device__ Pack<uint32_t, kOwnColumns> find_edges(const uint8_t* mask, int64_t height,
                                                  int64_t width, int64_t first, int64_t x) {
  const int count = static_cast<int>(min_of<int64_t>(width - x, kOwnColumns));
  const int last = static_cast<int>(min_of<int64_t>(height - 1 - first, kWordRows - 1));
  const uint8_t* const pixels_of_first = mask + first * width + x;
  // Rows beyond the last one equal it, so that they have no edges.
  const auto row = [&](int k) { return pixels_of_first + min_of(k, last) * width; };
  uint32_t above = 0;
  if (first > 0) {
    above = load_pixels<wide>(row(-1), count);
  } else {  // the last pixels of the columns before these
    const uint8_t* const last_row = mask + (height - 1) * width + x;
#pragma unroll 1
    for (int c = 0; c < count; ++c)
      if (x + c > 0) above |= uint32_t(last_row[c - 1]) << (8 * c);
  }
  Pack<uint32_t, kOwnColumns> words = {};
#pragma unroll
  for (int begin = 0; begin < kWordRows; begin += kRowsAtOnce) {
    uint32_t pixels[kRowsAtOnce], edges = 0;  // byte c: the rows of column c
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) pixels[j] = load_pixels<wide>(row(begin + j), count);
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      edges |= differing(pixels[j], above) << j;
      above = pixels[j];
    }
#pragma unroll
    for (int c = 0; c < kOwnColumns; ++c) words[c] |= (edges >> (8 * c) & 0xFF) << begin;
  }
  return words;
}

// Writes the words, and the number of edges of each column. One block for each strip of columns of
// a mask; a warp takes kWordRows rows at a time.
template <bool wide>
__global__ void __launch_bounds__(kThreads)
    mark_edges_kernel(const uint8_t* masks, EdgeWords out, int* counts) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ Pack<int, kOwnColumns> counts_of_warps[kWarps][kWarp];
  const int64_t height = out.image_height, width = out.image_width;
  const auto num_strips = static_cast<unsigned>((width + kStrip - 1) / kStrip);
  const int64_t n = blockIdx.x / num_strips, first = int64_t(blockIdx.x % num_strips) * kStrip,
                x = first + lane() * kOwnColumns;
  Pack<int, kOwnColumns> own = {};
  for (int64_t block = warp(); x < width && block < out.num_blocks; block += kWarps) {
    const Pack<uint32_t, kOwnColumns> words =
        find_edges<wide>(masks + n * height * width, height, width, block * kWordRows, x);
    store_pack(out.at(n, block, x), words);
    for (int c = 0; c < kOwnColumns; ++c) own[c] += __popc(words[c]);
  }
  counts_of_warps[warp()][lane()] = own;
  __syncthreads();
  const int column = threadIdx.x;
  if (column >= kStrip || first + column >= width) return;
  int count = 0;
  for (int w = 0; w < kWarps; ++w)
    count += counts_of_warps[w][column / kOwnColumns][column % kOwnColumns];
  counts[n * width + first + column] = count;
}

// The number of edges of each column, (num_columns,) int32.
template <typename Columns>
Tensor count_edges(const Tensor& masks, const Columns& columns, int64_t width) {
  const int64_t num_columns = masks.size(0) * width;
  const Tensor counts = empty(masks, {num_columns}, ScalarType::Int);
  int* const count = mutable_data<int>(counts);
  for_each(num_columns, current_stream(masks), [=] __device__(int64_t i) {
    int own = 0;
    columns.for_each_edge(i / width, i % width, [&](int64_t) { ++own; });
    count[i] = own;
  });
  return counts;
}

// Replaces the count of each column by the number of edges in the columns before it; totals[n + 1]
// is the number of edges of mask n. One block for each mask.
__global__ void __launch_bounds__(kThreads)
    add_up_columns_kernel(int64_t width, int* counts, int64_t* totals) {
  int* const of_mask = counts + blockIdx.x * width;
  int64_t before = 0;
  for (int64_t first = 0; first < width; first += kThreads) {
    const int64_t x = first + threadIdx.x;
    const auto sum = block_sum(x < width ? of_mask[x] : 0);
    if (x < width) of_mask[x] = static_cast<int>(before) + sum.before;
    before += sum.total;
  }
  if (threadIdx.x == 0) totals[blockIdx.x + 1] = before;
}

// Turns the totals of the masks into offsets.
__global__ void __launch_bounds__(kThreads) add_up_masks_kernel(int64_t count, int64_t* offsets) {
  int64_t before = 0;
  for (int64_t first = 0; first < count; first += kThreads) {
    const int64_t n = first + threadIdx.x;
    const int64_t own = n < count ? offsets[n + 1] : 0;
    const auto sum = block_sum(own);
    if (n < count) offsets[n + 1] = before + sum.before + own;
    before += sum.total;
  }
  if (threadIdx.x == 0) offsets[0] = 0;
}

// `counts` becomes the number of edges in the columns before each one.
template <typename Columns>
std::tuple<Tensor, Tensor> all_edges(const Tensor& masks, const Columns& columns, int64_t width,
                                     const Tensor& counts) {
  const int64_t count = masks.size(0), num_columns = count * width;
  const cudaStream_t stream = current_stream(masks);
  const Tensor offsets = empty(masks, {count + 1}, kInt64);
  int* const before = mutable_data<int>(counts);
  int64_t* const offset = mutable_data<int64_t>(offsets);
  launch(add_up_columns_kernel, dim3(static_cast<unsigned>(count)), dim3(kThreads), 0, stream,
         width, before, offset);
  launch(add_up_masks_kernel, dim3(1), dim3(kThreads), 0, stream, count, offset);
  int64_t num_edges = 0;
  STD_CUDA_CHECK(cudaMemcpyAsync(&num_edges, offset + count, sizeof num_edges,
                                 cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  const Tensor edges = empty(masks, {num_edges}, kInt64);
  int64_t* const out = mutable_data<int64_t>(edges);
  for_each(num_columns, stream, [=] __device__(int64_t i) {
    int64_t* next = out + offset[i / width] + before[i];
    columns.for_each_edge(i / width, i % width, [&](int64_t edge) { *next++ = edge; });
  });
  return {edges, offsets};
}

}  // namespace

std::tuple<Tensor, Tensor> pasted_mask_edges(const Tensor& masks, const Tensor& boxes,
                                             int64_t height, int64_t width, double threshold) {
  check_paste_masks("pasted_mask_edges", masks, boxes, height, width);
  const DeviceGuard guard(masks.get_device_index());
  const Tensor values = box_input(masks, box_dtype(masks));
  const Tensor ranges = paste_boxes(boxes, masks.size(2));
  return dispatch_box(box_dtype(masks), [&]<typename S>() {
    const auto pasted = pasted_masks<S>(values, paste_boxes_of(ranges), height, width);
    const PastedColumns<S> columns = {pasted, round_down<S>(threshold)};
    return all_edges(masks, columns, width, count_edges(masks, columns, width));
  });
}

std::tuple<Tensor, Tensor> mask_edges(const Tensor& masks) {
  check_mask_edges("mask_edges", masks);
  const DeviceGuard guard(masks.get_device_index());
  const Tensor masks_in = torch::stable::contiguous(masks);
  const int64_t count = masks.size(0), height = masks.size(1), width = masks.size(2);
  const auto divided = [](int64_t size, int64_t by) { return (size + by - 1) / by; };
  const int64_t num_blocks = divided(height, kWordRows);
  const int64_t pitch = divided(width, kOwnColumns) * kOwnColumns;
  const Tensor words = empty(masks, {count * num_blocks * pitch}, ScalarType::Int);
  const Tensor counts = empty(masks, {count * width}, ScalarType::Int);
  const EdgeWords edges = {reinterpret_cast<uint32_t*>(mutable_data<int>(words)), height, width,
                           num_blocks, pitch};
  const uint8_t* const pixels = data<uint8_t>(masks_in);
  const bool wide = width % 4 == 0 && reinterpret_cast<uintptr_t>(pixels) % 4 == 0;
  launch(wide ? mark_edges_kernel<true> : mark_edges_kernel<false>,
         dim3(static_cast<unsigned>(count * divided(width, kStrip))), dim3(kThreads), 0,
         current_stream(masks), pixels, edges, mutable_data<int>(counts));
  return all_edges(masks, edges, width, counts);
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("pasted_mask_edges", TORCH_BOX(&pasted_mask_edges));
  m.impl("mask_edges", TORCH_BOX(&mask_edges));
}

}  // namespace fastdet::cuda
