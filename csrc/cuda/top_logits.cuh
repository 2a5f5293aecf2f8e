// SPDX-License-Identifier: BSD-3-Clause
// The k largest logits above a bound of every segment (a level of an image), all segments side by
// side; of equal logits the first ones. What is selected comes out in the order of memory, so that
// later ties fall as the logits lie.
//
// A radix select over keys in the order of the logits, 11 bits a pass: each chunk counts its keys'
// digits in shared memory and adds them to its segment's histogram, and the chunk that comes last
// finds the digit in which the k-th key lies and leaves the histogram empty for the next pass. A
// segment of which no more than k pass the bound, or whose cut falls between two digits, is done at
// once. Then each chunk counts what it has above the cut and on it, and with the counts of the
// chunks before it knows the places of its own.
//
// The first pass reads every logit, 16 bytes a load, and notes the largest key of every 512; a
// later pass reads only those that can hold what it looks for, 2 KB of float32 for each logit
// selected at the most. Floor: the bytes of the logits, once. Launches: a memset, 3 histograms for
// float32 (2 for the half types, 6 for float64) and the count; the pass that emits is the caller's
// kernel. Memory: 16 KB a segment and 9 bits a float32 logit. Integer atomics alone: the result
// depends on no order. No host sync, no size that depends on data.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "../bilinear.h"
#include "../rows.h"
#include "block_sum.cuh"
#include "packs.cuh"

namespace fastdet::cuda {

namespace {

// ---- keys ---------------------------------------------------------------------------------------

template <typename T>
struct LogitKey {
  using S = RowMaths<T>;
  using type = std::conditional_t<std::is_same_v<S, double>, uint64_t, uint32_t>;

  // The low bits of S that T leaves as they are: zeros.
  static constexpr int kUnused = std::is_same_v<T, Half>       ? 13
                                 : std::is_same_v<T, BFloat16> ? 16
                                                               : 0;
  static constexpr int kBits = 8 * sizeof(type) - kUnused;

  // In the order of the logits; 0, which is below every logit, marks one that does not count.
  static __device__ type of(S logit, S bound) {
    if (!(logit > bound)) return 0;  // NaN is not
    const S positive_zero = logit + S(0);
    type bits;
    memcpy(&bits, &positive_zero, sizeof bits);
    constexpr type kSign = type(1) << (8 * sizeof(type) - 1);
    return (bits & kSign ? ~bits : bits | kSign) >> kUnused;
  }
};

// Selected are the keys above `kth`, and of those equal to it the first `ties`. Until it is found,
// kth holds the digits found so far, and `ties` of the keys that begin with them are wanted.
template <typename Key>
struct Cut {
  Key kth;
  int64_t ties, num_selected;
  bool found;

  // The least key that is selected or undecided.
  __device__ Key least() const { return ties > 0 ? max_of(kth, Key(1)) : kth + 1; }

  // 1 << 16 for a key above the cut, 1 for one on it: they add up over a chunk.
  __device__ unsigned count(Key key) const { return key > kth ? 1u << 16 : key == kth && ties > 0; }
};

// ---- digits -------------------------------------------------------------------------------------

constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;

// What a pass looks at: bits [shift, end) of the keys.
struct Digit {
  int shift, end;
  bool first, last;
};

template <typename T>
constexpr int kNumPasses = (LogitKey<T>::kBits + kDigitBits - 1) / kDigitBits;

template <typename T>
Digit digit_of_pass(int pass) {
  const int end = LogitKey<T>::kBits - pass * kDigitBits, shift = std::max(end - kDigitBits, 0);
  return {shift, end, pass == 0, shift == 0};
}

// Zero at first.
template <typename Key>
struct Segment {
  unsigned long long histogram[kBins];
  Cut<Key> cut;
  unsigned arrived;
};

// ---- chunks, tiles, lanes -----------------------------------------------------------------------

// A block takes a chunk of a segment's logits, a warp a tile of it, a lane a pack here and there.
constexpr int kPerLane = 16, kTile = kWarp * kPerLane, kTiles = kThreads / kWarp;
constexpr int kChunk = kTile * kTiles;

template <typename T>
constexpr int kWidth = kPackBytes / sizeof(T);

template <typename T>
struct LogitLevel {
  const T* logits;  // (B, num_logits)
  int64_t image_stride, num_logits;
  int64_t first_chunk, num_chunks;  // of an image's chunks
};

template <typename T>
struct Chunk {
  int64_t image, level, segment;
  int64_t number, num_chunks;  // in the segment
  const T* logits;             // the segment's, from the last address before them where packs begin
  int64_t begin, end;          // where they begin and end, counted from there
  int64_t first;               // of the chunk, counted from there

  // Of the lane's pack p.
  __device__ int64_t position(int p) const {
    return first + threadIdx.x / kWarp * kTile + (p * kWarp + threadIdx.x % kWarp) * kWidth<T>;
  }

  __device__ Pack<T, kWidth<T>> pack(int p) const {
    const int64_t at = position(p);
    if (at >= begin && at + kWidth<T> <= end) return load_pack<kWidth<T>>(logits + at);
    constexpr float kNever = std::numeric_limits<float>::quiet_NaN();
    Pack<T, kWidth<T>> edge;
    for (int e = 0; e < kWidth<T>; ++e)
      edge[e] = at + e >= begin && at + e < end ? logits[at + e] : static_cast<T>(kNever);
    return edge;
  }
};

// What the kernels take.
template <typename T>
struct LogitSegments {
  using S = RowMaths<T>;
  using Key = typename LogitKey<T>::type;

  LogitLevel<T> levels[kMaxLevels];
  int64_t num_levels;
  int64_t num_chunks;  // of an image
  int64_t k;
  S bound;
  Segment<Key>* segments;  // (B, L)
  Key* tile_max;           // (B, chunks, kTiles)
  unsigned* chunk_counts;  // (B, chunks), as Cut::count adds up

  __device__ Chunk<T> chunk() const {
    const int64_t image = blockIdx.x / num_chunks, c = blockIdx.x % num_chunks;
    int64_t l = 0;
    while (c >= levels[l].first_chunk + levels[l].num_chunks) ++l;
    const LogitLevel<T>& level = levels[l];
    const T* const logits = level.logits + image * level.image_stride;
    const int64_t begin = reinterpret_cast<uintptr_t>(logits) % kPackBytes / sizeof(T);
    const int64_t number = c - level.first_chunk;
    return {image,          l,     image * num_levels + l,   number,         level.num_chunks,
            logits - begin, begin, begin + level.num_logits, number * kChunk};
  }

  // Of levels [0, num) of an image.
  __device__ int64_t num_selected(int64_t image, int64_t num) const {
    int64_t sum = 0;
    for (int64_t l = 0; l < num; ++l) sum += segments[image * num_levels + l].cut.num_selected;
    return sum;
  }

  __device__ Key& own_tile_max() const {
    return tile_max[int64_t(blockIdx.x) * kTiles + threadIdx.x / kWarp];
  }

  // The lane's keys; false, and nothing, where the warp has no logit above the bound.
  __device__ bool read(const Chunk<T>& chunk, Key (&keys)[kPerLane]) const {
    constexpr int kPacks = kPerLane / kWidth<T>;
    Pack<T, kWidth<T>> packs[kPacks];
    bool any = false;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) packs[p] = chunk.pack(p);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      any |= static_cast<S>(packs[i / kWidth<T>][i % kWidth<T>]) > bound;
    if (!__any_sync(kAllLanes, any)) return false;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      keys[i] = LogitKey<T>::of(static_cast<S>(packs[i / kWidth<T>][i % kWidth<T>]), bound);
    return true;
  }

  // The same, and notes the warp's largest key.
  __device__ bool read_first(const Chunk<T>& chunk, Key (&keys)[kPerLane]) const {
    Key most = 0;
    const bool any = read(chunk, keys);
    if (any) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) most = max_of(most, keys[i]);
      for (int distance = kWarp / 2; distance > 0; distance /= 2)
        most = max_of(most, __shfl_xor_sync(kAllLanes, most, distance));
    }
    if (threadIdx.x % kWarp == 0) own_tile_max() = most;
    return any;
  }

  // The same of a tile that was read before, if a key of it is at least `least`.
  __device__ bool read_again(const Chunk<T>& chunk, Key least, Key (&keys)[kPerLane]) const {
    return own_tile_max() >= least && read(chunk, keys);
  }
};

// ---- the cut ------------------------------------------------------------------------------------

// Whether the block is the last of `num` that arrive; it sees what the others wrote before.
__device__ inline bool last_to_arrive(unsigned* arrived, int64_t num) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(arrived, 1u) == num - 1;
  __syncthreads();
  __threadfence();
  return last;
}

// Finds the digit in which the last key wanted lies, and empties the histogram.
template <typename Key>
__device__ void choose_digit(Segment<Key>& segment, int64_t k, const Digit& digit) {
  constexpr int kOwn = kBins / kThreads;
  const Cut<Key> cut = segment.cut;
  const int64_t wanted = digit.first ? k : cut.ties;
  int64_t counts[kOwn], own = 0;
#pragma unroll
  for (int j = 0; j < kOwn; ++j) {
    const int bin = kBins - 1 - (threadIdx.x * kOwn + j);
    counts[j] = static_cast<int64_t>(atomicExch(&segment.histogram[bin], 0ull));
    own += counts[j];
  }
  const auto [before, total] = block_sum(own);
  if (threadIdx.x == 0) segment.arrived = 0;
  if (digit.first && total <= k) {
    if (threadIdx.x == 0) segment.cut = {0, 0, total, true};
    return;
  }
  int64_t above = before;
#pragma unroll
  for (int j = 0; j < kOwn; ++j) {
    if (above < wanted && wanted <= above + counts[j]) {
      const Key bin = kBins - 1 - (threadIdx.x * kOwn + j);
      const Key kth = cut.kth | bin << digit.shift;
      const bool whole = wanted == above + counts[j] && kth > 0;
      segment.cut = {whole ? kth - 1 : kth, whole ? 0 : wanted - above, k, whole || digit.last};
    }
    above += counts[j];
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) histogram_kernel(LogitSegments<T> in, Digit digit) {
  using Key = typename LogitKey<T>::type;
  __shared__ unsigned histogram[kBins];
  const Chunk<T> chunk = in.chunk();
  Segment<Key>& segment = in.segments[chunk.segment];
  const Cut<Key> cut = segment.cut;
  if (cut.found) return;
  Key keys[kPerLane];
  const bool any =
      digit.first ? in.read_first(chunk, keys) : in.read_again(chunk, cut.least(), keys);
  if (__syncthreads_or(any)) {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) histogram[bin] = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; any && i < kPerLane; ++i) {
      const bool begins_alike = digit.first || keys[i] >> digit.end == cut.kth >> digit.end;
      if (keys[i] > 0 && begins_alike)
        atomicAdd(&histogram[keys[i] >> digit.shift & ((1u << (digit.end - digit.shift)) - 1)], 1u);
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads)
      if (histogram[bin] > 0)
        atomicAdd(&segment.histogram[bin], static_cast<unsigned long long>(histogram[bin]));
  }
  if (last_to_arrive(&segment.arrived, chunk.num_chunks)) choose_digit(segment, in.k, digit);
}

// ---- what is selected ---------------------------------------------------------------------------

template <typename T>
__global__ void __launch_bounds__(kThreads) count_kernel(LogitSegments<T> in) {
  using Key = typename LogitKey<T>::type;
  const Chunk<T> chunk = in.chunk();
  const Cut<Key> cut = in.segments[chunk.segment].cut;
  Key keys[kPerLane];
  unsigned count = 0;
  if (in.read_again(chunk, cut.least(), keys)) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) count += cut.count(keys[i]);
  }
  const unsigned total = block_sum(count).total;
  if (threadIdx.x == 0) in.chunk_counts[blockIdx.x] = total;
}

// emit(row, index) for each logit of the chunk that is selected: its row among all that are
// selected of the image, and its index in the segment. All threads of a block call it.
template <typename T, typename Emit>
__device__ void for_each_selected(const LogitSegments<T>& in, const Chunk<T>& chunk, Emit emit) {
  using Key = typename LogitKey<T>::type;
  __shared__ uint16_t offsets[kChunk];
  const unsigned own = in.chunk_counts[blockIdx.x];
  if (own == 0) return;
  const Cut<Key> cut = in.segments[chunk.segment].cut;
  int64_t above = 0, equal = 0;
  for (int64_t c = blockIdx.x - chunk.number + threadIdx.x; c < blockIdx.x; c += kThreads) {
    above += in.chunk_counts[c] >> 16;
    equal += in.chunk_counts[c] & 0xffff;
  }
  above = block_sum(above).total;
  equal = block_sum(equal).total;
  const int64_t ties_left = max_of(cut.ties - equal, int64_t(0));

  Key keys[kPerLane];
  const bool any = in.read_again(chunk, cut.least(), keys);
  unsigned count = 0;
#pragma unroll
  for (int i = 0; any && i < kPerLane; ++i) count += cut.count(keys[i]);
  // The warp's base; then pack by pack, since lanes take turns within the tile.
  unsigned base = __shfl_sync(kAllLanes, block_sum(count).before, 0);
#pragma unroll
  for (int p = 0; any && p < kPerLane / kWidth<T>; ++p) {
    unsigned of_pack = 0;
#pragma unroll
    for (int e = 0; e < kWidth<T>; ++e) of_pack += cut.count(keys[p * kWidth<T> + e]);
    const unsigned up_to = warp_sum_up_to(of_pack);
    unsigned before = base + up_to - of_pack;
#pragma unroll
    for (int e = 0; e < kWidth<T>; ++e) {
      const unsigned one = cut.count(keys[p * kWidth<T> + e]);
      const int64_t ties_before = min_of<int64_t>(before & 0xffff, ties_left);
      if (one > 1 || (one == 1 && ties_before < ties_left))
        offsets[(before >> 16) + ties_before] =
            static_cast<uint16_t>(chunk.position(p) + e - chunk.first);
      before += one;
    }
    base += __shfl_sync(kAllLanes, up_to, kWarp - 1);
  }
  __syncthreads();

  const int64_t num_selected = (own >> 16) + min_of<int64_t>(own & 0xffff, ties_left);
  const int64_t row = in.num_selected(chunk.image, chunk.level) + above + (cut.ties - ties_left);
  for (int64_t i = threadIdx.x; i < num_selected; i += kThreads)
    emit(row + i, chunk.first + offsets[i] - chunk.begin);
}

// ---- the host's side ----------------------------------------------------------------------------

template <typename T>
class TopLogits {
 public:
  // Of levels (B, ...) with dense rows.
  TopLogits(const std::vector<Tensor>& levels, int64_t k, RowMaths<T> bound)
      : num_images_(levels[0].size(0)) {
    in_.num_levels = static_cast<int64_t>(levels.size());
    in_.k = k;
    in_.bound = k > 0 ? bound : std::numeric_limits<RowMaths<T>>::infinity();
    for (size_t l = 0; l < levels.size(); ++l) {
      int64_t num_logits = 1;
      for (int64_t d = 1; d < levels[l].dim(); ++d) num_logits *= levels[l].size(d);
      // Packs may begin before the logits. An empty level has a chunk, too, which finds its cut.
      const int64_t end = num_logits + kWidth<T> - 1;
      in_.levels[l] = {data<T>(levels[l]), levels[l].stride(0), num_logits, in_.num_chunks,
                       (end + kChunk - 1) / kChunk};
      in_.num_chunks += in_.levels[l].num_chunks;
      most_selected_ += std::min(k, num_logits);
    }
    allocate(levels[0]);
  }

  // Of an image.
  int64_t most_selected() const { return most_selected_; }

  // Of kernels that call for_each_selected.
  dim3 grid() const { return dim3(static_cast<unsigned>(num_images_ * in_.num_chunks)); }

  // What such kernels take.
  const LogitSegments<T>& select(cudaStream_t stream) {
    STD_CUDA_CHECK(cudaMemsetAsync(in_.segments, 0, segments_.numel(), stream));
    for (int pass = 0; pass < kNumPasses<T>; ++pass)
      launch(histogram_kernel<T>, grid(), dim3(kThreads), 0, stream, in_, digit_of_pass<T>(pass));
    launch(count_kernel<T>, grid(), dim3(kThreads), 0, stream, in_);
    return in_;
  }

 private:
  using Key = typename LogitKey<T>::type;

  void allocate(const Tensor& like) {
    const auto bytes = [&](int64_t n) { return empty(like, {n}, ScalarType::Byte); };
    const int64_t num_chunks = num_images_ * in_.num_chunks;
    segments_ = bytes(num_images_ * in_.num_levels * sizeof(Segment<Key>));
    tile_max_ = bytes(num_chunks * kTiles * sizeof(Key));
    chunk_counts_ = bytes(num_chunks * sizeof(unsigned));
    in_.segments = mutable_data<Segment<Key>>(segments_);
    in_.tile_max = mutable_data<Key>(tile_max_);
    in_.chunk_counts = mutable_data<unsigned>(chunk_counts_);
  }

  LogitSegments<T> in_ = {};
  int64_t num_images_, most_selected_ = 0;
  Tensor segments_, tile_max_, chunk_counts_;
};

}  // namespace

}  // namespace fastdet::cuda
