// SPDX-License-Identifier: BSD-3-Clause
// The k largest logits above a bound of every segment (one level of one image), for all segments at
// once; of equal logits the first ones. The selected logits are written in memory order, so that
// later ties are decided by that order.
//
// A radix select over keys that have the order of the logits, 11 bits in each pass. Each block
// counts the digits of its chunk in shared memory and adds the counts to the segment's histogram.
// The block that arrives last finds the digit that contains the k-th key and clears the histogram
// for the next pass. A segment is finished early if at most k of its logits pass the bound, or if
// its cut falls between two digits. Then the caller's kernel writes the selected logits. Each of
// its blocks counts its keys above the cut and equal to it, publishes the counts, and waits for the
// counts of the chunks before its own. This cannot deadlock, because blocks take chunks in the
// order in which they start, and publish before they wait.
//
// The first pass reads every logit, 16 bytes for each load, and records the largest key of every
// tile of 512 logits. The other passes read only the tiles that can contain a wanted key: at most 2
// KB of float32 for each logit in the cut's digit or above. The lower bound of the traffic is to
// read all logits once. Launches: a memset and 3 histograms for float32, 2 for the half types, 6
// for float64. Memory: 16 KB for each segment and 1 byte for about 100 float32 logits. The atomics
// add integers, so the result does not depend on their order. No host sync; no size depends on the
// data.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "../device/arrival.cuh"
#include "../device/block_sum.cuh"
#include "../device/packs.cuh"
#include "../geometry/numbers.h"
#include "../geometry/pyramid.h"

namespace fastdet::cuda {

namespace {

// ---- keys ---------------------------------------------------------------------------------------

template <typename T>
struct LogitKey {
  using S = Sum<T>;
  using type = std::conditional_t<std::is_same_v<S, double>, uint64_t, uint32_t>;

  // The low bits of S that are zero in every value of T.
  static constexpr int kUnused = std::is_same_v<T, Half>       ? 13
                                 : std::is_same_v<T, BFloat16> ? 16
                                                               : 0;
  static constexpr int kBits = 8 * sizeof(type) - kUnused;

  // Has the order of the logits. 0 is below the key of every logit and marks a logit that does not
  // count.
  static __device__ type of(S logit, S bound) {
    if (!(logit > bound)) return 0;  // NaN does not pass
    const S positive_zero = logit + S(0);
    type bits;
    memcpy(&bits, &positive_zero, sizeof bits);
    constexpr type kSign = type(1) << (8 * sizeof(type) - 1);
    return (bits & kSign ? ~bits : bits | kSign) >> kUnused;
  }
};

// The selected keys are those above `kth`, and the first `ties` of the keys equal to it. Until the
// cut is found, kth holds the digits found so far, and of the keys with these digits `ties` are
// wanted.
template <typename Key>
struct Cut {
  Key kth;
  int64_t ties, num_selected;
  bool found;

  // The smallest key that is selected or undecided.
  __device__ Key least() const { return ties > 0 ? max_of(kth, Key(1)) : kth + 1; }
};

// ---- digits -------------------------------------------------------------------------------------

constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;

// The bits [shift, end) of the keys, which one pass reads.
struct Digit {
  int shift, end;
  bool first, last;

  template <typename Key>
  __device__ unsigned of(Key key) const {
    return static_cast<unsigned>(key >> shift) & ((1u << (end - shift)) - 1);
  }

  // Whether the key begins with the digits of the earlier passes.
  template <typename Key>
  __device__ bool follows(Key key, Key digits) const {
    return first || key >> end == digits >> end;
  }
};

template <typename T>
constexpr int kNumPasses = (LogitKey<T>::kBits + kDigitBits - 1) / kDigitBits;

template <typename T>
Digit digit_of_pass(int pass) {
  const int end = LogitKey<T>::kBits - pass * kDigitBits, shift = std::max(end - kDigitBits, 0);
  return {shift, end, pass == 0, shift == 0};
}

// All zero at the beginning.
template <typename Key>
struct Segment {
  unsigned long long histogram[kBins];
  Cut<Key> cut;
  unsigned arrived;
};

// ---- tiles, runs, chunks ------------------------------------------------------------------------

// A block takes a chunk of a segment. Each of its warps takes a run of the chunk, which is `span`
// tiles. A tile is what a warp reads at once.
constexpr int kPerLane = 16, kTile = kWarp * kPerLane, kRuns = kThreads / kWarp;

// The target for the number of chunks. Runs grow to reach it, up to one tile for each lane of a
// warp. A later pass reads only the largest key of most tiles, and blocks that do nothing else
// would be wasted.
constexpr int64_t kManyChunks = 512;

template <typename T>
constexpr int kWidth = kPackBytes / sizeof(T);

template <typename T>
struct Tile {
  const T* logits;  // of the segment
  int64_t first;    // index of its first logit; below 0 if the tile begins before the logits
  int begin, end;   // the places of the tile that belong to the segment

  __device__ T logit(int place) const { return logits[first + place]; }

  // The place at which the lane's pack p begins.
  __device__ int place(int p) const { return (p * kWarp + lane()) * kWidth<T>; }

  __device__ Pack<T, kWidth<T>> pack(int p) const {
    const int at = place(p);
    if (at >= begin && at + kWidth<T> <= end) return load_pack<kWidth<T>>(logits + first + at);
    constexpr float kNever = std::numeric_limits<float>::quiet_NaN();
    Pack<T, kWidth<T>> edge;
    for (int e = 0; e < kWidth<T>; ++e)
      edge[e] = at + e >= begin && at + e < end ? logit(at + e) : static_cast<T>(kNever);
    return edge;
  }
};

template <typename T>
struct LogitLevel {
  const T* logits;  // (B, num_logits)
  int64_t image_stride, num_logits;
  unsigned first_chunk, num_chunks;  // of an image's chunks
};

// A warp's part of a chunk.
template <typename T>
struct Run {
  int64_t number;  // among all runs
  int64_t image, level, segment;
  unsigned first_chunk, chunk, num_chunks;  // of the segment; `chunk` is the run's
  const T* logits;                          // of the segment
  int64_t num_logits, first;                // the index of the run's first logit

  __device__ Tile<T> tile(int t) const {
    const int64_t at = first + int64_t(t) * kTile;
    const auto inside = [](int64_t place) {
      return static_cast<int>(max_of(min_of<int64_t>(place, kTile), int64_t(0)));
    };
    return {logits, at, inside(-at), inside(num_logits - at)};
  }
};

// The numbers of keys of a chunk above the cut and equal to it, in one word; 0 until they are
// known.
struct Published {
  unsigned long long word;

  static constexpr unsigned long long kKnown = 1ull << 63;
  static constexpr int kHalf = 31;

  __device__ void set(unsigned above, unsigned equal) {
    atomicExch(&word, kKnown | static_cast<unsigned long long>(above) << kHalf | equal);
  }

  // Waits until they are known.
  __device__ void add_to(int64_t& above, int64_t& equal) const {
    unsigned long long known = 0;
    while (!(known & kKnown)) known = *static_cast<const volatile unsigned long long*>(&word);
    above += static_cast<int64_t>((known & ~kKnown) >> kHalf);
    equal += static_cast<int64_t>(known & ((1ull << kHalf) - 1));
  }
};

// The argument of the kernels.
template <typename T>
struct LogitSegments {
  using S = Sum<T>;
  using Key = typename LogitKey<T>::type;

  LogitLevel<T> levels[kMaxLevels];
  int num_levels;
  unsigned num_chunks;  // of an image
  int span;
  int64_t k;
  S bound;
  Segment<Key>* segments;  // (B, L)
  Key* tile_max;           // (B, chunks, kRuns, span)
  Published* published;    // (B, chunks)
  unsigned* num_taken;     // chunks that blocks have taken in for_each_selected

  // The warp's run of a chunk; chunks count over all images.
  __device__ Run<T> run(unsigned chunk) const {
    const unsigned image = chunk / num_chunks, c = chunk % num_chunks;
    int l = 0;
    while (c >= levels[l].first_chunk + levels[l].num_chunks) ++l;
    const LogitLevel<T>& level = levels[l];
    const T* const logits = level.logits + image * level.image_stride;
    // Tiles begin at the addresses of packs.
    const int64_t early = reinterpret_cast<uintptr_t>(logits) % kPackBytes / sizeof(T);
    const unsigned number = c - level.first_chunk;
    const int64_t first = (int64_t(number) * kRuns + warp()) * span * kTile - early;
    return {int64_t(chunk) * kRuns + warp(),
            image,
            l,
            int64_t(image) * num_levels + l,
            chunk - number,
            chunk,
            level.num_chunks,
            logits,
            level.num_logits,
            first};
  }

  // The number selected in levels [0, num) of an image.
  __device__ int64_t num_selected(int64_t image, int64_t num) const {
    int64_t sum = 0;
    for (int64_t l = 0; l < num; ++l) sum += segments[image * num_levels + l].cut.num_selected;
    return sum;
  }

  // Reads the lane's keys. Returns false, without keys, if the tile has no logit above the bound.
  __device__ bool read(const Tile<T>& tile, Key (&keys)[kPerLane]) const {
    constexpr int kPacks = kPerLane / kWidth<T>;
    Pack<T, kWidth<T>> packs[kPacks];
    bool any = false;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) packs[p] = tile.pack(p);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      any |= static_cast<S>(packs[i / kWidth<T>][i % kWidth<T>]) > bound;
    if (!__any_sync(kAllLanes, any)) return false;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      keys[i] = LogitKey<T>::of(static_cast<S>(packs[i / kWidth<T>][i % kWidth<T>]), bound);
    return true;
  }

  // Calls body(tile, keys) for each tile of the run that has a logit above the bound, and stores
  // the largest key of each tile.
  template <typename Body>
  __device__ void for_each_tile(const Run<T>& run, Body body) const {
    for (int t = 0; t < span; ++t) {
      const Tile<T> tile = run.tile(t);
      Key keys[kPerLane], most = 0;
      if (read(tile, keys)) {
        body(tile, keys);
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) most = max_of(most, keys[i]);
        for (int distance = kWarp / 2; distance > 0; distance /= 2)
          most = max_of(most, __shfl_xor_sync(kAllLanes, most, distance));
      }
      if (lane() == 0) tile_max[run.number * span + t] = most;
    }
  }

  // Calls body(tile, keys) for each tile with a key of at least `least`, which is above 0.
  template <typename Body>
  __device__ void for_each_tile_with(Key least, const Run<T>& run, Body body) const {
    const int own = lane();
    const bool has = own < span && tile_max[run.number * span + own] >= least;
    for (unsigned left = __ballot_sync(kAllLanes, has); left; left &= left - 1) {
      const Tile<T> tile = run.tile(__ffs(left) - 1);
      Key keys[kPerLane];
      if (read(tile, keys)) body(tile, keys);
    }
  }
};

// ---- the cut ------------------------------------------------------------------------------------

// Finds the digit that contains the last wanted key, and clears the histogram.
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
  const Run<T> run = in.run(blockIdx.x);
  Segment<Key>& segment = in.segments[run.segment];
  const Cut<Key> cut = segment.cut;
  if (cut.found) return;
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) histogram[bin] = 0;
  __syncthreads();
  const auto add = [&](const Tile<T>&, const Key(&keys)[kPerLane]) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      if (keys[i] > 0 && digit.follows(keys[i], cut.kth))
        atomicAdd(&histogram[digit.of(keys[i])], 1u);
  };
  if (digit.first)
    in.for_each_tile(run, add);
  else
    in.for_each_tile_with(cut.least(), run, add);
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads)
    if (histogram[bin] > 0)
      atomicAdd(&segment.histogram[bin], static_cast<unsigned long long>(histogram[bin]));
  if (last_to_arrive(&segment.arrived, run.num_chunks)) choose_digit(segment, in.k, digit);
}

// ---- the selected logits ------------------------------------------------------------------------

// The numbers of keys above the cut and equal to it.
struct Counts {
  int64_t above, equal;
};

// Lists the places of the tile's selected keys, with the first `ties` of the keys equal to the cut.
// Returns how many there are.
template <typename T, typename Key>
__device__ Counts list_selected(const Tile<T>& tile, const Cut<Key>& cut, int64_t ties,
                                const Key (&keys)[kPerLane], uint16_t* places) {
  // Both counts in one number: the keys equal to the cut in its lower 16 bits.
  const auto counted = [&](Key key) {
    return key > cut.kth ? 1u << 16 : unsigned(key == cut.kth && cut.ties > 0);
  };
  unsigned before_pack = 0;
#pragma unroll
  for (int p = 0; p < kPerLane / kWidth<T>; ++p) {
    unsigned own = 0;
#pragma unroll
    for (int e = 0; e < kWidth<T>; ++e) own += counted(keys[p * kWidth<T> + e]);
    const unsigned up_to = warp_sum_up_to(own);
    unsigned before = before_pack + up_to - own;
#pragma unroll
    for (int e = 0; e < kWidth<T>; ++e) {
      const unsigned one = counted(keys[p * kWidth<T> + e]), equal = before & 0xffff;
      if (one > 1 || (one == 1 && equal < ties))
        places[(before >> 16) + min_of<int64_t>(equal, ties)] = tile.place(p) + e;
      before += one;
    }
    before_pack += __shfl_sync(kAllLanes, up_to, kWarp - 1);
  }
  return {before_pack >> 16, min_of<int64_t>(before_pack & 0xffff, ties)};
}

// Counts the selected keys of the segment before the warp's run. False if the chunk itself has
// none.
template <typename T>
__device__ bool count_before(const LogitSegments<T>& in, const Run<T>& run,
                             const Cut<typename LogitKey<T>::type>& cut, Counts& before) {
  using Key = typename LogitKey<T>::type;
  unsigned above = 0, equal = 0;
  in.for_each_tile_with(cut.least(), run, [&](const Tile<T>&, const Key(&keys)[kPerLane]) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      above += keys[i] > cut.kth;
      equal += cut.ties > 0 && keys[i] == cut.kth;
    }
  });
  const BlockSum<unsigned> all_above = block_sum(above), all_equal = block_sum(equal);
  if (threadIdx.x == 0) in.published[run.chunk].set(all_above.total, all_equal.total);
  if (all_above.total + all_equal.total == 0) return false;
  before = {0, 0};
  for (unsigned c = run.first_chunk + threadIdx.x; c < run.chunk; c += kThreads)
    in.published[c].add_to(before.above, before.equal);
  before = {block_sum(before.above).total + __shfl_sync(kAllLanes, all_above.before, 0),
            block_sum(before.equal).total + __shfl_sync(kAllLanes, all_equal.before, 0)};
  return true;
}

// Gives the block a chunk. Blocks take chunks in the order in which they start, so the blocks of
// lower chunks already run.
template <typename T>
__device__ unsigned take_chunk(const LogitSegments<T>& in) {
  __shared__ unsigned chunk;
  if (threadIdx.x == 0) chunk = atomicAdd(in.num_taken, 1u);
  __syncthreads();
  return chunk;
}

// Calls emit(row, index, logit) for each selected logit of the run: its row among all selected
// logits of the image, in memory order, and its index in the segment. All threads of a block call
// it, with the runs of a chunk that the block has taken.
template <typename T, typename Emit>
__device__ void for_each_selected(const LogitSegments<T>& in, const Run<T>& run, Emit emit) {
  using Key = typename LogitKey<T>::type;
  __shared__ uint16_t places_of_runs[kRuns][kTile];
  uint16_t* const places = places_of_runs[warp()];
  const Cut<Key> cut = in.segments[run.segment].cut;
  Counts before;
  if (!count_before(in, run, cut, before)) return;
  int64_t ties = max_of(cut.ties - before.equal, int64_t(0));
  int64_t row = in.num_selected(run.image, run.level) + before.above + cut.ties - ties;
  in.for_each_tile_with(cut.least(), run, [&](const Tile<T>& tile, const Key(&keys)[kPerLane]) {
    const Counts listed = list_selected(tile, cut, ties, keys, places);
    __syncwarp();
    const int num = static_cast<int>(listed.above + listed.equal);
    for (int i = lane(); i < num; i += kWarp)
      emit(row + i, tile.first + places[i], static_cast<Sum<T>>(tile.logit(places[i])));
    __syncwarp();  // the next tile overwrites the list
    row += num;
    ties -= listed.equal;
  });
}

// ---- host code ----------------------------------------------------------------------------------

template <typename T>
class TopLogits {
 public:
  // `levels` are (B, ...), with dense images.
  TopLogits(const std::vector<Tensor>& levels, int64_t k, Sum<T> bound)
      : num_images_(levels[0].size(0)) {
    in_.num_levels = static_cast<int>(levels.size());
    in_.k = k;
    in_.bound = k > 0 ? bound : std::numeric_limits<Sum<T>>::infinity();
    int64_t num_tiles = 0;
    for (size_t l = 0; l < levels.size(); ++l) {
      int64_t num_logits = 1;
      for (int64_t d = 1; d < levels[l].dim(); ++d) num_logits *= levels[l].size(d);
      in_.levels[l] = {data<T>(levels[l]), levels[l].stride(0), num_logits, 0, 0};
      num_tiles += num_images_ * num_logits / kTile;
      most_selected_ += std::min(k, num_logits);
    }
    in_.span = static_cast<int>(std::min<int64_t>(num_tiles / (kManyChunks * kRuns) + 1, kWarp));
    number_chunks();
    allocate(levels[0]);
  }

  // The largest number that can be selected in an image.
  int64_t most_selected() const { return most_selected_; }

  // The grid of a kernel whose blocks call take_chunk once, and then for_each_selected.
  dim3 grid() const { return dim3(static_cast<unsigned>(num_images_ * in_.num_chunks)); }

  // The argument of that kernel.
  const LogitSegments<T>& select(cudaStream_t stream) {
    STD_CUDA_CHECK(cudaMemsetAsync(in_.num_taken, 0, zeroed_bytes_, stream));
    for (int pass = 0; pass < kNumPasses<T>; ++pass)
      launch(histogram_kernel<T>, grid(), dim3(kThreads), 0, stream, in_, digit_of_pass<T>(pass));
    return in_;
  }

 private:
  using Key = typename LogitKey<T>::type;

  void number_chunks() {
    const int64_t chunk = int64_t(in_.span) * kRuns * kTile;
    for (int l = 0; l < in_.num_levels; ++l) {
      // Packs may begin before the logits. An empty level has a chunk too, so that its cut is set.
      const int64_t end = in_.levels[l].num_logits + kWidth<T> - 1;
      in_.levels[l].first_chunk = in_.num_chunks;
      in_.levels[l].num_chunks = static_cast<unsigned>((end + chunk - 1) / chunk);
      in_.num_chunks += in_.levels[l].num_chunks;
    }
  }

  void allocate(const Tensor& like) {
    const int64_t num_segments = num_images_ * in_.num_levels;
    const int64_t num_chunks = num_images_ * in_.num_chunks;
    // Each size is a multiple of 8. The parts that must be zero come first.
    const int64_t taken_bytes = sizeof(Published), published_bytes = num_chunks * sizeof(Published);
    const int64_t segment_bytes = num_segments * sizeof(Segment<Key>);
    const int64_t max_bytes = num_chunks * kRuns * in_.span * sizeof(Key);
    zeroed_bytes_ = taken_bytes + published_bytes + segment_bytes;
    workspace_ = empty(like, {zeroed_bytes_ + max_bytes}, ScalarType::Byte);
    uint8_t* at = mutable_data<uint8_t>(workspace_);
    in_.num_taken = reinterpret_cast<unsigned*>(at);
    in_.published = reinterpret_cast<Published*>(at += taken_bytes);
    in_.segments = reinterpret_cast<Segment<Key>*>(at += published_bytes);
    in_.tile_max = reinterpret_cast<Key*>(at += segment_bytes);
  }

  LogitSegments<T> in_ = {};
  int64_t num_images_, most_selected_ = 0, zeroed_bytes_ = 0;
  Tensor workspace_;
};

}  // namespace

}  // namespace fastdet::cuda
