// SPDX-License-Identifier: BSD-3-Clause
// The rows of each image by falling score, ties by rising row; a score that is NaN or a coordinate
// that is not finite leaves a row out. A block sorts a tile of rows in shared memory, then each
// row's rank is its place in its tile plus, by bisection, how many rows of every other tile come
// before it: exact, with no pass over the digits and no order among blocks. 1 launch up to kTile
// rows an image, else 2. Only tiles below an image's count are worked on.
//
// A bitonic sort of 4096 rows is 78 steps, some 4 us; the bisections are 12 loads
// a row and tile, by threads in the order of their scores that mostly load the same: 100k rows have
// 25 tiles, 300 loads a row from the first-level cache. Past a million rows a radix sort would win.
#pragma once

#include <type_traits>

#include "packs.cuh"
#include "warp.cuh"

namespace fastdet::cuda {

constexpr int kTile = 4096;  // rows; with float64 keys as much shared memory as any GPU grants
constexpr int kSortThreads = 1024;

template <typename T>
using KeyOf = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;

// Above the key of every score.
template <typename T>
constexpr KeyOf<T> kLeftOut = ~KeyOf<T>(0);

// Unsigned integers in the order of the numbers.
template <typename T>
__device__ KeyOf<T> rising_key(T x) {
  KeyOf<T> bits;
  memcpy(&bits, &x, sizeof bits);
  constexpr KeyOf<T> kSign = KeyOf<T>(1) << (8 * sizeof bits - 1);
  return bits & kSign ? ~bits : bits | kSign;
}

// Rises as the score falls; -0 and 0 tie.
template <typename T>
__device__ KeyOf<T> score_key(T score, const Box<T>& box) {
  if (isnan(score) || !is_finite(box)) return kLeftOut<T>;
  return ~rising_key(score + T(0));
}

template <typename T>
struct ScoreOrder {
  const Box<T>* boxes;    // (B, n)
  const T* scores;        // (B, n)
  const int64_t* counts;  // (B,) or null
  int64_t n;
  int num_tiles;
  KeyOf<T>* keys;         // (B, n) sorted within each tile
  uint32_t* rows;         // (B, n) their rows
  uint32_t* tile_usable;  // (B, num_tiles) rows of the tile that are not left out
  uint32_t* order;        // (B, n) row of each rank; `rows` where there is one tile
  uint32_t* usable;       // (B,) ranks; `tile_usable` where there is one tile

  __device__ int64_t count(int64_t image) const {
    return counts ? max_of<int64_t>(0, min_of(counts[image], n)) : n;
  }
};

// The least power of 2 that is not below x > 0.
__device__ inline int power_of_2(int x) { return x > 1 ? 1 << (32 - __clz(x - 1)) : 1; }

// Sorts by (key, value), by all threads of the block; size is a power of 2. Where this step and the
// last stay within the 64 places of a warp, the block needs no barrier: 28 of 78 steps have one.
template <typename Key>
__device__ void sort_tile(Key* keys, uint32_t* values, int size) {
  __syncthreads();
  for (int run = 2; run <= size; run *= 2)
    for (int step = run / 2; step > 0; step /= 2) {
      const int last_step = step == run / 2 ? 1 : 2 * step;
      if (max_of(step, last_step) > kWarp) {
        __syncthreads();
      } else {
        __syncwarp();
      }
      for (int i = threadIdx.x; i < size / 2; i += blockDim.x) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const Key a = keys[low], b = keys[high];
        const uint32_t v = values[low], w = values[high];
        const bool falls = a > b || (a == b && v > w);
        if (falls != ((low & run) != 0)) {
          keys[low] = b, keys[high] = a;
          values[low] = w, values[high] = v;
        }
      }
    }
  __syncthreads();
}

// One block a tile.
template <typename T>
__global__ void __launch_bounds__(kSortThreads) sort_tiles_kernel(ScoreOrder<T> in) {
  __shared__ KeyOf<T> keys[kTile];
  __shared__ uint32_t rows[kTile];
  const int64_t image = blockIdx.x / in.num_tiles, begin = image * in.n;
  const int64_t first = blockIdx.x % in.num_tiles * int64_t(kTile);
  const int size = static_cast<int>(min_of<int64_t>(in.count(image) - first, kTile));
  if (size <= 0) {
    if (threadIdx.x == 0) in.tile_usable[blockIdx.x] = 0;
    return;
  }
  const int padded = power_of_2(size);
  for (int i = threadIdx.x; i < padded; i += blockDim.x) {
    const int64_t row = first + i;
    rows[i] = static_cast<uint32_t>(row);
    keys[i] = i < size ? score_key(in.scores[begin + row], load_box(in.boxes + begin + row))
                       : kLeftOut<T>;
  }
  sort_tile(keys, rows, padded);
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    in.keys[begin + first + i] = keys[i];
    in.rows[begin + first + i] = rows[i];
    const bool left_out = keys[i] == kLeftOut<T>;
    if (!left_out && (i + 1 == size || keys[i + 1] == kLeftOut<T>))
      in.tile_usable[blockIdx.x] = i + 1;
    if (left_out && i == 0) in.tile_usable[blockIdx.x] = 0;
  }
}

// How many of the sorted keys are below `key`.
template <typename Key>
__device__ uint32_t num_below(const Key* keys, uint32_t n, Key key) {
  uint32_t low = 0, high = n;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (keys[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// One thread a row: a tile's rows over kTile / kThreads blocks.
template <typename T>
__global__ void __launch_bounds__(kThreads) merge_tiles_kernel(ScoreOrder<T> in) {
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t place = thread % (int64_t(in.num_tiles) * kTile);
  const int64_t image = thread / (int64_t(in.num_tiles) * kTile), begin = image * in.n;
  const int tile = static_cast<int>(place / kTile);
  const uint32_t* const usable = in.tile_usable + image * in.num_tiles;
  const bool has_row = place % kTile < usable[tile];
  if (!has_row && place > 0) return;
  const KeyOf<T> key = has_row ? in.keys[begin + place] : 0;
  uint32_t rank = place % kTile, total = 0;
  for (int other = 0; other < in.num_tiles; ++other) {
    total += usable[other];
    // Of equal scores those of earlier tiles come first.
    if (has_row && other != tile)
      rank +=
          num_below(in.keys + begin + int64_t(other) * kTile, usable[other], key + (other < tile));
  }
  if (has_row) in.order[begin + rank] = in.rows[begin + place];
  if (place == 0) in.usable[image] = total;
}

// Enough to sort a tile of an image of n rows.
inline dim3 sort_threads(int64_t n) {
  const int64_t threads = std::clamp<int64_t>((n + 63) / 64 * kWarp, kWarp, kSortThreads);
  return dim3(static_cast<unsigned>(threads));
}

template <typename T>
void sort_by_score(const ScoreOrder<T>& order, int64_t num_images, cudaStream_t stream) {
  const unsigned num_tiles = static_cast<unsigned>(num_images * order.num_tiles);
  launch(sort_tiles_kernel<T>, dim3(num_tiles), sort_threads(order.n), 0, stream, order);
  if (order.num_tiles > 1)
    launch(merge_tiles_kernel<T>, dim3(num_tiles * (kTile / kThreads)), dim3(kThreads), 0, stream,
           order);
}

}  // namespace fastdet::cuda
