// SPDX-License-Identifier: BSD-3-Clause
// Greedy non-maximum suppression of a batch of images. A box goes where a kept box before it
// overlaps it, so which boxes stay follows from the pairs that overlap, in any order that respects
// that rule:
//
//   sort     the boxes by falling score (score_order.cuh): 1 launch, or 2 above kTile rows an image
//   bundle   them by place (box_bundles.cuh): 1 launch
//   settle   3 launches, or 5: a warp a box looks for overlapping boxes before it. The box goes if
//            one of them is known to stay, and stays if all are known to go; else it waits. Each
//            time more is known: first which boxes meet none before them, then what those suppress.
//            The last time, a box that waits notes for which it waits, in words of 32 ranks.
//   resolve  the few that still wait: 1 launch, one block an image, 1024 ranks at a time. Those
//   that
//            wait for decided boxes alone are decided together, until none waits. Writes the
//            output.
//
// By count of instructions (sm_90): 32 hulls of bundles cost a warp about 50, the boxes of one some
// 55. Of 10k boxes in random places, with sides up to a tenth of the image, a box takes some 650,
// 7 us in all on 132 multiprocessors, so that launches and their latency dominate; of 100k some
// 4500, 0.4 ms in all for the first look alone, and the later ones and resolving, 98 steps of less
// than a microsecond, come on top.
//
// A box that waits for more than kEntries words and finds them all gone is compared with all kept
// boxes, by the whole block: the worst input costs about a microsecond a box. No block waits for
// another, and what is read while it changes only saves work: the result does not depend on timing.
// One allocation of about 105 bytes a row (8 more with groups, 60 more in float64); no host sync.
#pragma once

#include "../threshold.h"
#include "box_bundles.cuh"

namespace fastdet::cuda {

// Rounds of settling. Where there are many boxes, chains of boxes that wait are longer.
inline int num_rounds(int64_t n) { return n > kTile ? 5 : 3; }

constexpr int kEntries = 8;  // words that a box may wait for
constexpr int kSettleThreads = 256;
constexpr int64_t kSettleBlocks = 1024;  // of the batch: about what a large GPU runs at once
constexpr int kResolveThreads = 1024;
constexpr int kResolveWarps = kResolveThreads / kWarp;

enum State : uint8_t { kWaits, kStays, kGoes };

enum class Round { kFirst, kMiddle, kLast };

// Boxes that a box waits for: ranks of a word that are set in a mask.
struct Entry {
  uint32_t word, mask;
};

template <typename T>
struct Suppression {
  ScoreOrder<T> order;
  BoxBundles<T> bundles;
  const int64_t* groups;   // (B, n) or null
  volatile State* states;  // (B, n) by rank
  uint8_t* num_entries;    // (B, n) by rank; kEntries + 1 stands for more
  Entry* entries;          // (B, kEntries, n), words rising
  uint32_t* stays;         // (B, num_words): bits by rank, of the blocks that were resolved
  int64_t num_words;
  T iou_threshold, filter;
  int64_t* keep;         // (B, max_keep)
  int64_t* keep_counts;  // (B,)
  int64_t max_keep;
};

// One block a tile of ranks.
template <typename T>
__global__ void __launch_bounds__(kSortThreads) bundle_kernel(Suppression<T> in) {
  __shared__ uint32_t keys[kTile], ranks[kTile];
  const int64_t image = blockIdx.x / in.order.num_tiles, begin = image * in.order.n;
  const uint32_t first = blockIdx.x % in.order.num_tiles * kTile, n = in.order.usable[image];
  if (first >= n) return;
  const int size = static_cast<int>(min_of<uint32_t>(n - first, kTile));
  const int padded = power_of_2(size);
  for (int i = threadIdx.x; i < padded; i += blockDim.x) {
    ranks[i] = first + i;
    keys[i] = ~0u;
    if (i < size) keys[i] = place_key(in.order.boxes[begin + in.order.order[begin + first + i]]);
  }
  sort_tile(keys, ranks, padded);
  for (int i = threadIdx.x; i < (size + kWarp - 1) / kWarp * kWarp; i += blockDim.x) {
    Box<T> box = {};
    const int64_t place = begin + first + i;
    if (i < size) {
      const uint32_t row = in.order.order[begin + ranks[i]];
      box = load_box(in.order.boxes + begin + row);
      store_box(in.bundles.boxes + place, box);
      in.bundles.ranks[place] = ranks[i];
      if (in.groups) in.bundles.groups[place] = in.groups[begin + row];
      in.states[begin + ranks[i]] = can_overlap(box, area(box)) ? kWaits : kStays;
    }
    store_bundle(in.bundles, image * in.bundles.num_bundles + (first + i) / kWarp, box,
                 i < size && can_overlap(box, area(box)));
  }
}

// By a whole warp, on_overlap(overlaps, rank) where boxes of a tile, of the first n of an image,
// come before the seeker and overlap it: each lane with one box. Stops where that returns false.
template <typename T, typename OnOverlap>
__device__ bool look_through(const BoxBundles<T>& all, uint32_t n, uint32_t tile,
                             const Seeker<T>& seeker, T iou_threshold,
                             const OnOverlap& on_overlap) {
  const uint32_t end = min_of((tile + 1) * kTileBundles, (n + kWarp - 1) / kWarp);
  for (uint32_t first = tile * kTileBundles; first < end; first += kWarp) {
    const uint32_t own = min_of(first + lane(), end - 1);
    const bool near = seeker.may_overlap(load_box(all.hulls + own), all.areas[own]);
    unsigned todo = __ballot_sync(kAllLanes, near & (first + lane() < end));
    for (; todo; todo &= todo - 1) {
      const uint32_t own_place = (first + __ffs(todo) - 1) * kWarp + lane();
      const uint32_t place = min_of(own_place, n - 1);
      const uint32_t rank = all.ranks[place];
      const Box<T> box = load_box(all.boxes + place);
      bool overlaps = seeker.may_overlap(box) & (rank < seeker.rank) & (own_place < n);
      if (all.groups) overlaps = overlaps & (all.groups[place] == seeker.group);
      if (overlaps) overlaps = seeker.overlaps(box, iou_threshold);
      if (__any_sync(kAllLanes, overlaps) && !on_overlap(overlaps, rank)) return false;
    }
  }
  return true;
}

// By a whole warp: appends the words of a tile that are not 0. Returns the new number of entries.
template <typename T>
__device__ int append_entries(const Suppression<T>& in, int64_t image, uint32_t tile, uint32_t rank,
                              const uint32_t* words, int num_entries) {
  for (int i = lane(); i < kTile / kWarp; i += kWarp) {
    const unsigned set = __ballot_sync(kAllLanes, words[i] != 0);
    const int e = num_entries + __popc(set & lanes_below());
    if (words[i] && e < kEntries)
      in.entries[(image * kEntries + e) * in.order.n + rank] = {tile * (kTile / kWarp) + i,
                                                                words[i]};
    num_entries += __popc(set);
  }
  return min_of(num_entries, kEntries + 1);
}

// By a whole warp: what is known of a box, one of the first n. `words` has room for a tile's bits.
template <typename T>
__device__ State settle(const Suppression<T>& in, int64_t image, const BoxBundles<T>& bundles,
                        uint32_t n, const Seeker<T>& seeker, Round round, uint32_t* words) {
  const int64_t begin = image * in.order.n;
  const volatile State* const states = in.states + begin;
  const bool last = round == Round::kLast;
  bool goes = false, waits = false;
  int num_entries = 0;
  for (uint32_t tile = 0; tile <= seeker.rank / kTile; ++tile) {
    __syncwarp();
    if (last)
      for (int i = lane(); i < kTile / kWarp; i += kWarp) words[i] = 0;
    __syncwarp();
    const auto on_overlap = [&](bool overlaps, uint32_t rank) {
      const State state = overlaps ? states[rank] : kGoes;
      goes = __any_sync(kAllLanes, state == kStays);
      if (goes) return false;
      if (last && state == kWaits)
        atomicOr(&words[rank % kTile / kWarp], uint32_t(1) << rank % kWarp);
      waits = __any_sync(kAllLanes, state == kWaits) || waits;
      return !(waits && round == Round::kFirst);
    };
    if (!look_through(bundles, n, tile, seeker, in.iou_threshold, on_overlap))
      return goes ? kGoes : kWaits;
    __syncwarp();
    if (last) num_entries = append_entries(in, image, tile, seeker.rank, words, num_entries);
  }
  if (last && lane() == 0) in.num_entries[begin + seeker.rank] = static_cast<uint8_t>(num_entries);
  return waits ? kWaits : kStays;
}

// A warp a box, striding over the image.
template <typename T>
__global__ void __launch_bounds__(kSettleThreads, 4)
    settle_kernel(Suppression<T> in, int64_t blocks_per_image, Round round) {
  __shared__ uint32_t words[kSettleThreads / kWarp][kTile / kWarp];
  const int64_t image = blockIdx.x / blocks_per_image, begin = image * in.order.n;
  const uint32_t n = in.order.usable[image];
  const uint32_t step = static_cast<uint32_t>(blocks_per_image) * (kSettleThreads / kWarp);
  uint32_t place = blockIdx.x % blocks_per_image * (kSettleThreads / kWarp) + warp();
  const BoxBundles<T> bundles = in.bundles.of(image, in.order.n);
  for (; place < n; place += step) {
    const uint32_t rank = bundles.ranks[place];
    if (in.states[begin + rank] != kWaits) continue;
    const int64_t group = in.groups ? bundles.groups[place] : 0;
    const Seeker<T> seeker(load_box(bundles.boxes + place), rank, group, in.filter);
    const State state = settle(in, image, bundles, n, seeker, round, words[warp()]);
    if (lane() == 0) in.states[begin + rank] = state;
  }
}

// The ranks that are resolved together, one a thread.
struct Front {
  uint32_t stays[kResolveWarps], waits[kResolveWarps];  // bits
  bool compares, overlaps;
};

// What a waiting box's entries say. kWaits where its entries are not all.
template <typename T>
__device__ State resolve(const Suppression<T>& in, int64_t image, uint32_t first,
                         const Front& front) {
  const int64_t n = in.order.n, rank = first + threadIdx.x;
  const int num_entries = in.num_entries[image * n + rank];
  bool waits = num_entries > kEntries;
  for (int e = 0; e < min_of(num_entries, kEntries); ++e) {
    const Entry entry = in.entries[(image * kEntries + e) * n + rank];
    const int word = static_cast<int>(entry.word) - static_cast<int>(first / kWarp);
    const uint32_t stays =
        word < 0 ? in.stays[image * in.num_words + entry.word] : front.stays[word];
    if (stays & entry.mask) return kGoes;
    waits = waits || (word >= 0 && (front.waits[word] & entry.mask));
  }
  return waits ? kWaits : kStays;
}

// By the whole block: compares the box of thread `seeking`, before which no box waits, with all
// that stay.
template <typename T>
__device__ void compare_with_all(const Suppression<T>& in, int64_t image, uint32_t first,
                                 int seeking, int64_t num_kept, State& state, Front& front) {
  const int64_t begin = image * in.order.n;
  const auto group_of = [&](int64_t row) { return in.groups ? in.groups[begin + row] : 0; };
  const uint32_t* const rows = in.order.order + begin + first;
  const int64_t row = rows[seeking];
  const Seeker<T> seeker(in.order.boxes[begin + row], 0, group_of(row), in.filter);
  const auto overlaps = [&](int64_t other) {
    return group_of(other) == seeker.group &&
           seeker.overlaps(in.order.boxes[begin + other], in.iou_threshold);
  };
  const int thread = threadIdx.x;
  bool any = thread < seeking && state == kStays && overlaps(rows[thread]);
  for (int64_t k = thread; k < num_kept && !any; k += kResolveThreads)
    any = overlaps(in.keep[image * in.max_keep + k]);
  if (any) front.overlaps = true;
  __syncthreads();
  if (thread == seeking) state = front.overlaps ? kGoes : kStays;
}

// Decides a front's boxes, after all before them.
template <typename T>
__device__ State resolve_front(const Suppression<T>& in, int64_t image, uint32_t first,
                               int64_t num_kept, State state, Front& front) {
  for (;;) {
    const unsigned stays = __ballot_sync(kAllLanes, state == kStays);
    const unsigned waits = __ballot_sync(kAllLanes, state == kWaits);
    if (lane() == 0) front.stays[warp()] = stays, front.waits[warp()] = waits;
    __syncthreads();
    const unsigned waiting = __ballot_sync(kAllLanes, front.waits[lane()] != 0);
    if (!waiting) return state;
    const int word = __ffs(waiting) - 1;
    const int earliest = word * kWarp + __ffs(front.waits[word]) - 1;
    if (state == kWaits) state = resolve(in, image, first, front);
    if (static_cast<int>(threadIdx.x) == earliest) {
      front.compares = state == kWaits;
      front.overlaps = false;
    }
    __syncthreads();
    if (front.compares) compare_with_all(in, image, first, earliest, num_kept, state, front);
  }
}

// One block an image.
template <typename T>
__global__ void __launch_bounds__(kResolveThreads) resolve_kernel(Suppression<T> in) {
  __shared__ Front front;
  const int64_t image = blockIdx.x, begin = image * in.order.n;
  const uint32_t n = in.order.usable[image];
  const auto state_of = [&](uint32_t rank) { return rank < n ? in.states[begin + rank] : kGoes; };
  const auto row_of = [&](uint32_t rank) { return rank < n ? in.order.order[begin + rank] : 0; };
  State next_state = state_of(threadIdx.x);
  uint32_t next_row = row_of(threadIdx.x);
  int64_t num_kept = 0;
  for (uint32_t first = 0; first < n && num_kept < in.max_keep; first += kResolveThreads) {
    State state = next_state;
    const uint32_t row = next_row, next_rank = first + kResolveThreads + threadIdx.x;
    // Loaded while this front is resolved.
    next_state = state_of(next_rank);
    next_row = row_of(next_rank);
    state = resolve_front(in, image, first, num_kept, state, front);
    // How many stay in the warps before this one, and above those bits in all.
    const int of_warp = __popc(front.stays[lane()]);
    int sums = of_warp << 16 | (lane() < warp() ? of_warp : 0);
    for (int d = kWarp / 2; d > 0; d /= 2) sums += __shfl_xor_sync(kAllLanes, sums, d);
    const unsigned own = front.stays[warp()];
    const int64_t k = num_kept + (sums & 0xFFFF) + __popc(own & lanes_below());
    if (state == kStays && k < in.max_keep) in.keep[image * in.max_keep + k] = row;
    if (lane() == 0) in.stays[image * in.num_words + first / kWarp + warp()] = own;
    num_kept += sums >> 16;
    __syncthreads();
  }
  num_kept = min_of(num_kept, in.max_keep);
  for (int64_t k = num_kept + threadIdx.x; k < in.max_keep; k += kResolveThreads)
    in.keep[image * in.max_keep + k] = -1;
  if (threadIdx.x == 0) in.keep_counts[image] = num_kept;
}

// Hands out pieces of one allocation; without one, counts the bytes.
class Pieces {
 public:
  explicit Pieces(void* begin) : begin_(static_cast<char*>(begin)) {}

  template <typename E>
  void take(E*& piece, int64_t n) {
    constexpr int64_t kAlign = 256;
    piece = begin_ ? reinterpret_cast<E*>(begin_ + used_) : nullptr;
    used_ += (n * static_cast<int64_t>(sizeof(E)) + kAlign - 1) / kAlign * kAlign;
  }

  int64_t used() const { return used_; }

 private:
  char* begin_;
  int64_t used_ = 0;
};

// Places the arrays from `begin` on. Returns the bytes that they take.
template <typename T>
int64_t take_arrays(void* begin, int64_t num_images, Suppression<T>& in) {
  Pieces pieces(begin);
  ScoreOrder<T>& order = in.order;
  BoxBundles<T>& bundles = in.bundles;
  const int64_t total = num_images * order.n;
  pieces.take(order.keys, total);
  pieces.take(order.rows, total);
  pieces.take(order.tile_usable, num_images * order.num_tiles);
  order.order = order.rows;
  order.usable = order.tile_usable;
  if (order.num_tiles > 1) {
    pieces.take(order.order, total);
    pieces.take(order.usable, num_images);
  }
  pieces.take(bundles.boxes, total);
  pieces.take(bundles.ranks, total);
  if (in.groups) pieces.take(bundles.groups, total);
  pieces.take(bundles.hulls, num_images * bundles.num_bundles);
  pieces.take(bundles.areas, num_images * bundles.num_bundles);
  pieces.take(in.states, total);
  pieces.take(in.num_entries, total);
  pieces.take(in.entries, total * kEntries);
  pieces.take(in.stays, num_images * in.num_words);
  return pieces.used();
}

// Of contiguous boxes (B, N, 4) and scores (B, N) of type T, groups (B, N) or none, and counts (B,)
// or none, both int64: writes keep (B, max_keep), padded with -1, and keep_counts (B,), int64. Rows
// from an image's count on are never read.
template <typename T>
void greedy_nms(const Tensor& boxes, const Tensor& scores, double iou_threshold, int64_t max_keep,
                const std::optional<Tensor>& groups, const std::optional<Tensor>& counts,
                const Tensor& keep, const Tensor& keep_counts) {
  const Tensor boxes_in = aligned(boxes);
  const cudaStream_t stream = current_stream(boxes);
  const int64_t num_images = boxes.size(0), n = boxes.size(1);
  STD_TORCH_CHECK(n <= INT32_MAX, "fastdet: NMS of more than 2^31 - 1 boxes in an image");
  const auto divided = [n](int64_t size) { return std::max<int64_t>(1, (n + size - 1) / size); };
  Suppression<T> in = {};
  in.order.boxes = data<Box<T>>(boxes_in);
  in.order.scores = data<T>(scores);
  in.order.counts = counts ? data<int64_t>(*counts) : nullptr;
  in.order.n = n;
  in.order.num_tiles = static_cast<int>(divided(kTile));
  in.bundles.num_bundles = divided(kWarp);
  in.groups = groups ? data<int64_t>(*groups) : nullptr;
  in.num_words = divided(kResolveThreads) * kResolveWarps;
  in.iou_threshold = round_down<T>(iou_threshold);
  in.filter = in.iou_threshold > T(1e-6) ? in.iou_threshold * kShrink<T> : T(0);
  in.keep = mutable_data<int64_t>(keep);
  in.keep_counts = mutable_data<int64_t>(keep_counts);
  in.max_keep = max_keep;
  const int64_t bytes = take_arrays(nullptr, num_images, in);
  const Tensor workspace = empty(boxes, {bytes}, ScalarType::Byte);
  take_arrays(workspace.mutable_data_ptr(), num_images, in);

  sort_by_score(in.order, num_images, stream);
  const auto blocks = [&](int64_t of_image) {
    return dim3(static_cast<unsigned>(num_images * of_image));
  };
  launch(bundle_kernel<T>, blocks(in.order.num_tiles), sort_threads(n), 0, stream, in);
  const int64_t share = std::max<int64_t>(kSettleBlocks / std::max<int64_t>(num_images, 1), 32);
  const int64_t of_image = std::min(divided(kSettleThreads / kWarp), share);
  for (int left = num_rounds(n); left > 0; --left) {
    const Round round = left == 1               ? Round::kLast
                        : left == num_rounds(n) ? Round::kFirst
                                                : Round::kMiddle;
    launch(settle_kernel<T>, blocks(of_image), dim3(kSettleThreads), 0, stream, in, of_image,
           round);
  }
  launch(resolve_kernel<T>, blocks(1), dim3(kResolveThreads), 0, stream, in);
}

}  // namespace fastdet::cuda
