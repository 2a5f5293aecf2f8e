// SPDX-License-Identifier: BSD-3-Clause
// The rows of each image in two orders: by falling score (ties: the lower row first), and by place,
// so that boxes that lie close together are neighbours in memory. Boxes of different groups are
// never compared, so groups are hashed into buckets, and the places of a bucket follow each other.
// A row with a NaN score or a coordinate that is not finite is in neither order.
//
// Of few rows, the rank of a row is counted: it is the number of keys that come before its key. A
// block of 32 warps ranks 64 rows, and each warp reads a share of the keys. A pair costs about 2.1
// instructions: 10k rows are 6.6 million warp instructions, 7 us on 132 multiprocessors. The same
// launch finds the places by bins (box_bundles.cuh).
//
// Of more rows, tiles are sorted and then merged. A block sorts a tile of 4096 rows in shared
// memory by a bitonic network of 78 steps. Each step moves 64 KB, about 25 us in all. Then the rank
// of a row is its place in its tile plus the number of rows of every other tile that come before
// it, which a binary search finds: 12 loads for each row and tile, mostly of the same addresses.
// The result is exact and does not depend on the order of the blocks. Only tiles below an image's
// count are processed. Above a million rows a radix sort would be faster.
//
// Up to about 32k rows of an image, the places still come from bins, and only the scores are
// sorted, in tiles of 2048 rows: 66 steps of 32 KB, about 13 us, while the bins take about 20 us.
// Above, tiles give both orders.
#pragma once

#include <type_traits>

#include "../device/packs.cuh"
#include "../device/warp.cuh"

namespace fastdet::cuda {

constexpr int kTile = 4096;  // rows; float64 keys need 48 KB, which every GPU has in shared memory
constexpr int kScoreTile = 2048;  // rows, if only the scores are sorted
constexpr int kOrderThreads = 1024, kOrderWarps = kOrderThreads / kWarp;

template <typename T>
using KeyOf = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;

// The key of a row that is left out: above every other key.
template <typename T>
constexpr KeyOf<T> kLeftOut = ~KeyOf<T>(0);

// Maps numbers to unsigned integers with the same order.
template <typename T>
__device__ KeyOf<T> rising_key(T x) {
  KeyOf<T> bits;
  memcpy(&bits, &x, sizeof bits);
  constexpr KeyOf<T> kSign = KeyOf<T>(1) << (8 * sizeof bits - 1);
  return bits & kSign ? ~bits : bits | kSign;
}

// Rises as the score falls; -0 and 0 get the same key.
template <typename T>
__device__ KeyOf<T> score_key(T score, const Box<T>& box) {
  if (isnan(score) || !is_finite(box)) return kLeftOut<T>;
  return ~rising_key(score + T(0));
}

// Puts 11 bits into every second place of 22.
__device__ inline uint32_t spread(uint32_t x) {
  x = (x | x << 8) & 0x00FF00FF;
  x = (x | x << 4) & 0x0F0F0F0F;
  x = (x | x << 2) & 0x33333333;
  return (x | x << 1) & 0x55555555;
}

// Areas that differ by less than a factor of 16 have the same or neighbouring classes.
template <typename T>
__device__ uint32_t size_class(T box_area) {
  return rising_key(static_cast<float>(box_area)) >> 25;
}

constexpr int kBucketBits = 5, kBuckets = 1 << kBucketBits;

// The bucket of a group, by Fibonacci hashing: consecutive ids get different buckets.
__device__ inline uint32_t bucket_of(int64_t group) {
  return static_cast<uint32_t>(static_cast<uint64_t>(group) * 0x9E3779B97F4A7C15u >>
                               (64 - kBucketBits));
}

// 11 bits of a coordinate: sign, exponent and 5 bits of the fraction. The exponent is taken modulo
// 32, so the bits rise from 2^-15 to 2^17 pixels, and from -2^17 to -2^-15.
__device__ inline uint32_t coordinate_bits(float x) {
  const uint32_t bits = rising_key(x) >> 18;
  return (bits >> 3 & 0x400) | ((bits + (16 << 5)) & 0x3FF);
}

// Keys that are close for boxes that lie close together: the size class, then a Z curve. They need
// no knowledge of the other boxes, and have 26 bits.
template <typename T>
__device__ uint32_t place_key(const Box<T>& box) {
  const uint32_t x = coordinate_bits(static_cast<float>((box.x1 + box.x2) / 2));
  const uint32_t y = coordinate_bits(static_cast<float>((box.y1 + box.y2) / 2));
  return (size_class(area(box)) & 0xF) << 22 | spread(x) << 1 | spread(y);
}

// Decides which of two boxes comes first.
template <typename T>
struct alignas(2 * sizeof(KeyOf<T>)) Turn {
  KeyOf<T> key;
  uint32_t row;

  __device__ bool before(const Turn& other) const {
    return (key < other.key) | ((key == other.key) & (row < other.row));
  }
};

template <typename T>
struct BoxOrders {
  const Box<T>* boxes;    // (B, n)
  const T* scores;        // (B, n)
  const int64_t* groups;  // (B, n) or null: one group
  const int64_t* counts;  // (B,) or null
  int64_t num_images, n;
  uint32_t* by_score;  // (B, n): the row of each rank
  uint32_t* usable;    // (B,): the number of rows that have a rank
  // If tiles are sorted, by score (O = 1) or by score and by place (O = 2):
  int num_tiles;
  KeyOf<T>* keys;         // (O, B, n) sorted within each tile
  uint32_t* rows;         // (O, B, n) their rows
  uint32_t* tile_usable;  // (O, B, num_tiles) rows of the tile that are not left out
  uint32_t* by_place;     // (B, n): the row of each place; only if O = 2

  __device__ int64_t count(int64_t image) const {
    return counts ? max_of<int64_t>(0, min_of(counts[image], n)) : n;
  }

  __device__ KeyOf<T> key_of_score(int64_t image, int64_t row) const {
    return score_key(scores[image * n + row], load_box(boxes + image * n + row));
  }

  __device__ KeyOf<T> key_of_place(int64_t image, int64_t row) const {
    if (key_of_score(image, row) == kLeftOut<T>) return kLeftOut<T>;
    return bucket(image, row) << 26 | place_key(load_box(boxes + image * n + row));
  }

  __device__ uint32_t bucket(int64_t image, int64_t row) const {
    return groups ? bucket_of(groups[image * n + row]) : 0;
  }
};

// ---- by counting --------------------------------------------------------------------------------

constexpr int kRanksPerLane = 2, kRanksPerBlock = kRanksPerLane * kWarp;

// How many of a warp's keys are below `bound`.
template <typename Key>
__device__ uint32_t num_below_of(const Key (&keys)[kWarp], Key bound) {
  constexpr int kWide = kPackWidth<Key>;
  uint32_t num = 0;
#pragma unroll 4
  for (int i = 0; i < kWarp; i += kWide) {
    const Pack<Key, kWide> pack = load_pack<kWide>(keys + i);
#pragma unroll
    for (int j = 0; j < kWide; ++j) num += pack[j] < bound;
  }
  return num;
}

// Ranks kRanksPerBlock rows of the image, from `first` on. A whole block of kOrderThreads calls it.
template <typename T>
__device__ void count_ranks(const BoxOrders<T>& in, int64_t image, int64_t first) {
  using Key = KeyOf<T>;
  alignas(kPackBytes) __shared__ Key keys_of_warps[kOrderWarps][kWarp];
  __shared__ uint32_t ranks[kRanksPerBlock];
  Key(&keys)[kWarp] = keys_of_warps[warp()];
  const int64_t n = in.count(image);
  const auto key_of = [&](int64_t row) {
    return row < n ? in.key_of_score(image, row) : kLeftOut<T>;
  };
  if (threadIdx.x < kRanksPerBlock) ranks[threadIdx.x] = 0;
  Key own[kRanksPerLane];
  uint32_t num_before[kRanksPerLane] = {};
#pragma unroll
  for (int j = 0; j < kRanksPerLane; ++j) own[j] = key_of(first + j * kWarp + lane());
  for (int64_t from = int64_t(warp()) * kWarp; from < n; from += kOrderThreads) {
    keys[lane()] = key_of(from + lane());
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kRanksPerLane; ++j) {
      const int64_t own_from = first + j * kWarp;
      // Of rows with equal keys, the earlier row comes first.
      num_before[j] += num_below_of(keys, own[j] + Key(from < own_from));
      for (int i = 0; from == own_from && i < lane(); ++i) num_before[j] += keys[i] == own[j];
    }
    __syncwarp();
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kRanksPerLane; ++j) atomicAdd(&ranks[j * kWarp + lane()], num_before[j]);
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kRanksPerLane; ++j)
    if (warp() == j && own[j] != kLeftOut<T>)
      in.by_score[image * in.n + ranks[j * kWarp + lane()]] =
          static_cast<uint32_t>(first + j * kWarp + lane());
}

// ---- by sorted tiles ----------------------------------------------------------------------------

// The smallest power of 2 that is at least x > 0.
__device__ inline int power_of_2(int x) { return x > 1 ? 1 << (32 - __clz(x - 1)) : 1; }

// Sorts by (key, value); size is a power of 2. All threads of the block call it. If this step and
// the last one stay within the 64 places of a warp, the block needs no barrier: 28 of 78 steps have
// one.
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

// A tile in shared memory.
template <typename T, int size>
struct RowTile {
  KeyOf<T> keys[size];
  uint32_t rows[size];
};

// Sorts tile `number`; the tiles of all images by score come first, then those by place. A whole
// block of kOrderThreads calls it.
template <typename T, int most>
__device__ void sort_rows(const BoxOrders<T>& in, int64_t number, RowTile<T, most>& tile) {
  KeyOf<T>(&keys)[most] = tile.keys;
  uint32_t (&rows)[most] = tile.rows;
  const int64_t order = number / in.num_tiles, image = order % in.num_images;
  const int64_t first = number % in.num_tiles * most;
  const int size = static_cast<int>(min_of<int64_t>(in.count(image) - first, most));
  if (size <= 0) {
    if (threadIdx.x == 0) in.tile_usable[number] = 0;
    return;
  }
  const int padded = power_of_2(size);
  for (int i = threadIdx.x; i < padded; i += blockDim.x) {
    const int64_t row = first + i;
    rows[i] = static_cast<uint32_t>(row);
    keys[i] = kLeftOut<T>;
    if (i < size)
      keys[i] = order < in.num_images ? in.key_of_score(image, row) : in.key_of_place(image, row);
  }
  sort_tile(keys, rows, padded);
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    in.keys[order * in.n + first + i] = keys[i];
    in.rows[order * in.n + first + i] = rows[i];
    const bool left_out = keys[i] == kLeftOut<T>;
    if (!left_out && (i + 1 == size || keys[i + 1] == kLeftOut<T>)) in.tile_usable[number] = i + 1;
    if (left_out && i == 0) in.tile_usable[number] = 0;
  }
}

// One block for each tile.
template <typename T>
__global__ void __launch_bounds__(kOrderThreads) sort_tiles_kernel(BoxOrders<T> in) {
  __shared__ RowTile<T, kTile> tile;
  sort_rows(in, blockIdx.x, tile);
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

// Writes the row at place `number` of the sorted tiles, if there is one, where its rank says.
template <int of_tile, typename T>
__device__ void merge_row(const BoxOrders<T>& in, int64_t number) {
  const int64_t place = number % (int64_t(in.num_tiles) * of_tile);
  const int64_t order = number / (int64_t(in.num_tiles) * of_tile), image = order % in.num_images;
  const int tile = static_cast<int>(place / of_tile);
  const uint32_t* const usable = in.tile_usable + order * in.num_tiles;
  if (place % of_tile >= usable[tile]) return;
  const KeyOf<T>* const keys = in.keys + order * in.n;
  const KeyOf<T> key = keys[place];
  uint32_t rank = place % of_tile;
  // Of rows with equal keys, the row of the earlier tile comes first.
  for (int other = 0; other < in.num_tiles; ++other)
    if (other != tile)
      rank += num_below(keys + int64_t(other) * of_tile, usable[other], key + (other < tile));
  uint32_t* const rows = order < in.num_images ? in.by_score : in.by_place;
  rows[image * in.n + rank] = in.rows[order * in.n + place];
}

// One thread for each row: the rows of a tile take kTile / kThreads blocks.
template <typename T>
__global__ void __launch_bounds__(kThreads) merge_tiles_kernel(BoxOrders<T> in) {
  const int64_t number = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  merge_row<kTile>(in, number);
  if (number >= in.num_images) return;
  uint32_t total = 0;
  for (int tile = 0; tile < in.num_tiles; ++tile)
    total += in.tile_usable[number * in.num_tiles + tile];
  in.usable[number] = total;
}

template <typename T>
void sort_by_tiles(const BoxOrders<T>& orders, cudaStream_t stream) {
  const unsigned num_tiles = static_cast<unsigned>(2 * orders.num_images * orders.num_tiles);
  launch(sort_tiles_kernel<T>, dim3(num_tiles), dim3(kOrderThreads), 0, stream, orders);
  launch(merge_tiles_kernel<T>, dim3(num_tiles * (kTile / kThreads)), dim3(kThreads), 0, stream,
         orders);
}

}  // namespace fastdet::cuda
