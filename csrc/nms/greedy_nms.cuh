// SPDX-License-Identifier: BSD-3-Clause
// Greedy non-maximum suppression of a batch of images. A box is removed if a kept box before it
// overlaps it. So the result depends only on the overlapping pairs, and they may be found in any
// order:
//
//   order    sort by falling score (box_orders.cuh), and bundle by place (box_bundles.cuh).
//            1 launch, or 3 if an image may have more than kMostByBins boxes.
//   settle   2 launches. One warp for each box searches the overlapping boxes before it. The box is
//            removed if one of them is known to stay. It stays if all of them are known to be
//            removed. Otherwise it waits. The first launch settles the boxes that overlap no box
//            before them; it looks into a box's own bundle first, where most others find one and
//            stop. In the second, a box that still waits stores which boxes it waits for, in words
//            of 32 places. If the order has sorted tiles of scores, further blocks of the first
//            launch merge them: nothing needs the ranks before resolving.
//   decide   2 launches, only if the order took 3: each waiting box reads its words again. The
//            second one also searches again for boxes with more words than could be stored: by now
//            most of the boxes that they wait for are removed.
//   resolve  1 launch, one block for each image. The few boxes that still wait read their words up
//            to kRounds times. Then the block takes the boxes by rank, as many at a time as it has
//            threads, until none of these waits. This launch also writes the kept rows.
//
// So there are 4 launches, or 8. Of boxes in random places, and of an RPN's boxes, about 5% still
// wait after settling, in chains of at most 5 or 6.
//
// The costs are estimated from the instructions (sm_90), not measured. A warp needs about 50
// instructions to test 32 hulls, and about 55 to test the boxes of a bundle. For 10k boxes in
// random places, with sides up to a tenth of the image, a box needs about 400 instructions: 5 us in
// all on 132 multiprocessors, so the launches and their latency dominate. For 100k boxes a box
// needs about 1200: 0.13 ms for the first settling and half of that for the second. With 40 us for
// the orders and 25 us for the 98 steps of resolving, this is about 0.3 ms in all. An RPN in
// training has about 8,700 boxes for each image. To count their ranks takes 6.4 us of the whole GPU
// for each image; to sort them, 13 us of 5 multiprocessors, and to merge them about 0.3 us. So for
// 16 images the order takes about 20 us, the time of one block to find the places.
//
// Counted in the emulator, for 100k boxes about 2,000 objects, 50 about each: both launches of
// settling test 7.4 million times 32 hulls or boxes if all boxes have one group, 0.42 ms, and 1.6
// million times, 0.1 ms, if they have 80 classes. Without buckets the classes would cost 12.3
// million. To search again adds 0.24 million to the first case; it leaves 6 searches to the one
// block of resolving, which would have 790 without it.
//
// Resolving reads words in shared memory that no thread writes before the next barrier, so its
// result and its work do not depend on timing: a round sets the bits in memory, and copies them
// then; the boxes of a step set theirs after all have decided. To copy the words of 10k boxes takes
// a load of each thread, about 0.2 us a round.
//
// A box may wait for more than kEntries words. If the boxes in all stored words turn out to be
// removed, a whole warp searches the bundles for this box again. No block waits for another.
// Reading a state while it changes can only save work: the result does not depend on timing. The
// metric of the overlap is the IoU; merging also uses the IoS (nmm.cu).
// Memory: one allocation of 98 bytes for each row, plus 8 if tiles of scores are sorted, or 20 if
// ordering takes 3 launches, up to 32 in float64 and 8 with groups. No host sync.
#pragma once

#include "../geometry/threshold.h"
#include "box_bundles.cuh"

namespace fastdet::cuda {

constexpr int64_t kMostByBins = 1 << 15;       // rows of an image
constexpr double kMostCountedPairs = 1 << 28;  // of the batch; to count them takes 22 us
constexpr int kEntries = 8;                    // words that a box may wait for
constexpr int kRounds = 8;
constexpr int kSettleThreads = 256;
constexpr int64_t kSettleBlocks = 1024;  // of the batch: about what a large GPU runs at once
template <typename T>
constexpr int kResolveThreads = sizeof(T) > 4 ? 512 : 1024;  // float64 needs more registers
constexpr int64_t kSharedWords = 4096;  // for the states, in resolve: 131072 boxes

// Boxes that a box waits for: those of one bundle whose bits are set in the mask.
struct Entry {
  uint32_t bundle, mask;
};

template <typename T>
struct Suppression {
  BoxOrders<T> orders;
  BoxBundles<T> bundles;
  uint32_t* places;      // (B, n): the place of each row
  uint8_t* num_entries;  // (B, n) by place; kEntries + 1 stands for more
  Entry* entries;        // (B, kEntries, n) by place
  T threshold, filter;   // boxes overlap if their metric is above the threshold
  int64_t* keep_counts;  // (B,)
  int64_t max_keep;
};

// One block for each image finds the places; the other blocks rank kRanksPerBlock rows each.
template <typename T>
__global__ void __launch_bounds__(kOrderThreads) order_kernel(Suppression<T> in) {
  const int64_t num_images = in.orders.num_images, block = int64_t(blockIdx.x) - num_images;
  if (block < 0) {
    __shared__ uint32_t numbers[Bins::kWords];
    place_by_bins(in.orders, blockIdx.x, in.places, in.bundles, numbers);
  } else {
    const int64_t image = block % num_images, first = block / num_images * kRanksPerBlock;
    if (first < in.orders.count(image)) count_ranks(in.orders, image, first);
  }
}

// The same for more rows: the other blocks sort a tile of scores each.
template <typename T>
__global__ void __launch_bounds__(kOrderThreads) order_tiles_kernel(Suppression<T> in) {
  __shared__ union {
    uint32_t numbers[Bins::kWords];
    RowTile<T, kScoreTile> tile;
  } memory;
  const int64_t block = int64_t(blockIdx.x) - in.orders.num_images;
  if (block < 0) {
    place_by_bins(in.orders, blockIdx.x, in.places, in.bundles, memory.numbers);
  } else {
    sort_rows(in.orders, block, memory.tile);
  }
}

// Writes where the buckets begin that begin at this place; the last place also writes the end.
template <typename T>
__device__ void mark_buckets(const BoxOrders<T>& in, int64_t image, int64_t place, int64_t n,
                             uint32_t* buckets) {
  const auto bucket_at = [&](int64_t p) {
    return static_cast<int>(in.bucket(image, in.by_place[image * in.n + p]));
  };
  const int own = bucket_at(place), before = place > 0 ? bucket_at(place - 1) : -1;
#pragma unroll 1
  for (int b = before + 1; b <= own; ++b) buckets[b] = static_cast<uint32_t>(place);
  if (place + 1 < n) return;
#pragma unroll 1
  for (int b = own + 1; b <= kBuckets; ++b) buckets[b] = static_cast<uint32_t>(n);
}

// One block for each bale; the rows are already in the order of their places.
template <typename T>
__global__ void __launch_bounds__(kOrderThreads) bundle_kernel(Suppression<T> in) {
  const BoxOrders<T>& orders = in.orders;
  const int64_t image = blockIdx.x / in.bundles.num_bales, bale = blockIdx.x % in.bundles.num_bales;
  const int64_t begin = image * orders.n, place = bale * kBale + threadIdx.x;
  const int64_t n = orders.usable[image];
  if (bale * kBale >= n) return;
  const uint32_t row = orders.by_place[begin + min_of(place, n - 1)];
  const Box<T> box = load_box(orders.boxes + begin + row);
  const BoxBundles<T> out = in.bundles.of(image);
  if (place < n) {
    store_box(out.boxes + place, box);
    out.turns[place] = {orders.key_of_score(image, row), row};
    if (orders.groups) out.groups[place] = orders.groups[begin + row];
    in.places[begin + row] = static_cast<uint32_t>(place);
  }
  if (orders.groups && place < n) mark_buckets(orders, image, place, n, out.buckets);
  store_bale(out, bale, box, place < n);
}

// The state of the box at a place. `bundles` is the bundles of the image, whose places are the
// first n. With `note`, a box that waits stores its entries. A whole warp calls it.
template <OverlapMetric metric, typename T>
__device__ State settle(const Suppression<T>& in, int64_t image, const BoxBundles<T>& bundles,
                        uint32_t n, const Known& known, uint32_t place, bool note) {
  const Seeker<metric, T> seeker(load_box(bundles.boxes + place), bundles.turns[place],
                                 bundles.groups ? bundles.groups[place] : 0, in.filter);
  const auto state_after = [&](int64_t bundle, unsigned boxes) {
    const uint32_t stay = __shfl_sync(kAllLanes, known.stay(bundle), 0);  // the same in all lanes
    return boxes & stay ? kGoes : kWaits;
  };
  if (!note) {
    // Any box to wait for is enough, and most are in the same bundle.
    const int64_t own = place / kWarp;
    const uint32_t gone = __shfl_sync(kAllLanes, known.go(own), 0);
    const unsigned boxes = overlaps_in(bundles, n, own, gone, seeker, in.threshold);
    if (boxes) return state_after(own, boxes);
  }
  State state = kStays;
  int num_entries = 0;
  look_through(bundles, n, known, seeker, in.threshold, [&](int64_t bundle, unsigned boxes) {
    state = state_after(bundle, boxes);
    if (note && lane() == 0 && num_entries < kEntries)
      in.entries[(image * kEntries + num_entries) * in.orders.n + place] = {
          static_cast<uint32_t>(bundle), boxes};
    num_entries = min_of(num_entries + 1, kEntries + 1);
    return note && state == kWaits;
  });
  if (note && lane() == 0)
    in.num_entries[image * in.orders.n + place] = static_cast<uint8_t>(num_entries);
  return state;
}

// The state that follows from the entries of a waiting box. A box is stuck if all boxes of its
// stored entries are removed but it has more entries than could be stored.
struct Decision {
  State state;
  bool stuck;
};

template <typename T>
__device__ Decision decide(const Suppression<T>& in, int64_t image, const Known& known,
                           uint32_t place) {
  const int64_t n = in.orders.n;
  const int num_entries = in.num_entries[image * n + place];
  bool waits = false;
  for (int e = 0; e < min_of(num_entries, kEntries); ++e) {
    const Entry entry = in.entries[(image * kEntries + e) * n + place];
    if (known.stay(entry.bundle) & entry.mask) return {kGoes, false};
    waits = waits || (entry.mask & ~known.go(entry.bundle));
  }
  const bool stuck = !waits && num_entries > kEntries;
  return {waits || stuck ? kWaits : kStays, stuck};
}

enum class Pass { kFirst, kNote, kAgain };

// One warp for each waiting box, with a stride over the image. The last pass searches only for
// boxes that have more entries than could be stored; the others follow from their entries. Blocks
// beyond those of the images merge tiles of scores.
template <OverlapMetric metric, typename T>
__global__ void __launch_bounds__(kSettleThreads, sizeof(T) > 4 ? 3 : 4)
    settle_kernel(Suppression<T> in, int64_t blocks_per_image, Pass pass) {
  const int64_t image = blockIdx.x / blocks_per_image;
  if (image >= in.orders.num_images) {
    const int64_t block = blockIdx.x - in.orders.num_images * blocks_per_image;
    merge_row<kScoreTile>(in.orders, block * kSettleThreads + threadIdx.x);
    return;
  }
  const uint32_t n = in.orders.usable[image];
  const uint32_t step = static_cast<uint32_t>(blocks_per_image) * (kSettleThreads / kWarp);
  uint32_t place = blockIdx.x % blocks_per_image * (kSettleThreads / kWarp) + warp();
  const BoxBundles<T> bundles = in.bundles.of(image);
  for (; place < n; place += step) {
    if (bundles.known.state(place) != kWaits) continue;
    State state = kWaits;
    bool searches = true;
    if (pass == Pass::kAgain) {
      state = decide(in, image, bundles.known, place).state;
      searches = state == kWaits && in.num_entries[image * in.orders.n + place] > kEntries;
    }
    if (__shfl_sync(kAllLanes, searches, 0))
      state = settle<metric>(in, image, bundles, n, bundles.known, place, pass != Pass::kFirst);
    if (lane() == 0) bundles.known.set(place, state);
  }
}

// Decides the waiting boxes among the places first, first + step, ... of the image by what is
// known, and sets their states in `decided`. Returns whether any box was decided.
template <typename T>
__device__ bool decide_all(const Suppression<T>& in, int64_t image, const Known& known,
                           const Known& decided, int64_t n, int64_t first, int64_t step) {
  bool any = false;
  for (int64_t place = first; place < n; place += step) {
    if (known.state(place) != kWaits) continue;
    const State state = decide(in, image, known, static_cast<uint32_t>(place)).state;
    decided.set(place, state);
    any = any || state != kWaits;
  }
  return any;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    decide_kernel(Suppression<T> in, int64_t blocks_per_image) {
  const int64_t image = blockIdx.x / blocks_per_image;
  const Known known = in.bundles.of(image).known;
  decide_all(in, image, known, known, in.orders.usable[image],
             blockIdx.x % blocks_per_image * kThreads + threadIdx.x, blocks_per_image * kThreads);
}

// Decides the boxes of the next ranks, one for each thread; all boxes before them are decided. A
// whole block calls it.
template <OverlapMetric metric, typename T>
__device__ State resolve_front(const Suppression<T>& in, int64_t image,
                               const BoxBundles<T>& bundles, uint32_t n, const Known& known,
                               bool any, uint32_t place) {
  State state = any ? known.state(place) : kGoes;
  while (__syncthreads_or(state == kWaits)) {
    Decision decision = {state, false};
    if (state == kWaits) decision = decide(in, image, known, place);
    const unsigned stuck = __ballot_sync(kAllLanes, decision.stuck);
    if (stuck) {
      const int first = __ffs(stuck) - 1;
      const uint32_t its_place = __shfl_sync(kAllLanes, place, first);
      const State found = settle<metric>(in, image, bundles, n, known, its_place, true);
      if (lane() == first) decision.state = found;
    }
    __syncthreads();  // all have read what is known
    if (state == kWaits) known.set(place, decision.state);
    state = decision.state;
  }
  return state;
}

// One block for each image. write(image, k, row) receives the k-th kept row, -1 beyond the last.
template <OverlapMetric metric, typename T, typename Write>
__global__ void __launch_bounds__(kResolveThreads<T>, 1)
    resolve_kernel(Suppression<T> in, Write write) {
  __shared__ uint32_t words[2][kSharedWords], stay_of_warps[kWarp];
  constexpr int kStep = kResolveThreads<T>;
  const int64_t image = blockIdx.x, begin = image * in.orders.n;
  const uint32_t n = in.orders.usable[image];
  const BoxBundles<T> bundles = in.bundles.of(image);
  if (warp() == 0) stay_of_warps[lane()] = 0;  // the block may have fewer warps
  const bool shared = n <= kSharedWords * kWarp;
  const Known known = shared ? Known{words[0], words[1]} : bundles.known;
  for (int round = 0; round <= kRounds; ++round) {
    for (uint32_t i = threadIdx.x; shared && i * kWarp < n; i += kStep)
      words[0][i] = bundles.known.stay(i), words[1][i] = bundles.known.go(i);
    __syncthreads();
    const bool any =
        round < kRounds && decide_all(in, image, known, bundles.known, n, threadIdx.x, kStep);
    if (!__syncthreads_or(any)) break;
  }
  const auto row_of = [&](uint32_t rank) {
    return rank < n ? in.orders.by_score[begin + rank] : 0;
  };
  uint32_t row = row_of(threadIdx.x), place = n > 0 ? in.places[begin + row] : 0;
  uint32_t next_row = row_of(threadIdx.x + kStep);
  int64_t num_kept = 0;
  for (uint32_t first = 0; first < n && num_kept < in.max_keep; first += kStep) {
    // Loaded early, while this front is resolved.
    const uint32_t next_place = in.places[begin + next_row];
    const uint32_t row_after = row_of(first + 2 * kStep + threadIdx.x);
    const State state =
        resolve_front<metric>(in, image, bundles, n, known, first + threadIdx.x < n, place);
    const unsigned stay = __ballot_sync(kAllLanes, state == kStays);
    if (lane() == 0) stay_of_warps[warp()] = stay;
    __syncthreads();
    // The number of boxes that stay: in the warps before this one, and in the upper 16 bits in all
    // warps.
    const int of_warp = __popc(stay_of_warps[lane()]);
    int sums = of_warp << 16 | (lane() < warp() ? of_warp : 0);
    for (int d = kWarp / 2; d > 0; d /= 2) sums += __shfl_xor_sync(kAllLanes, sums, d);
    const int64_t k = num_kept + (sums & 0xFFFF) + __popc(stay & lanes_below());
    if (state == kStays && k < in.max_keep) write(image, k, row);
    num_kept += sums >> 16;
    row = next_row, place = next_place, next_row = row_after;
    __syncthreads();
  }
  num_kept = min_of(num_kept, in.max_keep);
  for (int64_t k = num_kept + threadIdx.x; k < in.max_keep; k += kStep)
    write(image, k, int64_t(-1));
  if (threadIdx.x == 0) in.keep_counts[image] = num_kept;
}

// ---- host code ----------------------------------------------------------------------------------

// Divides one allocation into pieces. Without an allocation it only counts the bytes.
class Pieces {
 public:
  explicit Pieces(void* begin) : begin_(static_cast<char*>(begin)) {}

  template <typename E>
  void take(E*& piece, int64_t n) {
    constexpr int64_t kAlign = 256;
    piece = begin_ ? reinterpret_cast<E*>(begin_ + used_) : nullptr;
    used_ += (n * static_cast<int64_t>(sizeof(E)) + kAlign - 1) / kAlign * kAlign;
  }

  template <typename T>
  void take(Hulls<T>& hulls, int64_t n) {
    take(hulls.boxes, n);
    take(hulls.areas, n);
  }

  int64_t used() const { return used_; }

 private:
  char* begin_;
  int64_t used_ = 0;
};

// How the ranks by score and the places are found: by counting and by bins; by sorted tiles and by
// bins; both by sorted tiles.
enum class Ordering { kCount, kScoreTiles, kTiles };

// Places the arrays from `begin` on. Returns how many bytes they take.
template <typename T>
int64_t take_arrays(void* begin, Ordering ordering, Suppression<T>& in) {
  Pieces pieces(begin);
  BoxOrders<T>& orders = in.orders;
  BoxBundles<T>& bundles = in.bundles;
  const int64_t num_images = orders.num_images, total = num_images * orders.n;
  pieces.take(orders.by_score, total);
  pieces.take(orders.usable, num_images);
  if (ordering != Ordering::kCount) {
    const int num_orders = ordering == Ordering::kTiles ? 2 : 1;
    pieces.take(orders.keys, num_orders * total);
    pieces.take(orders.rows, num_orders * total);
    pieces.take(orders.tile_usable, num_orders * num_images * orders.num_tiles);
  }
  if (ordering == Ordering::kTiles) pieces.take(orders.by_place, total);
  pieces.take(bundles.boxes, total);
  pieces.take(bundles.turns, total);
  if (orders.groups) {
    pieces.take(bundles.groups, total);
    pieces.take(bundles.buckets, num_images * (kBuckets + 1));
  }
  pieces.take(bundles.hulls, num_images * bundles.num_bundles);
  pieces.take(bundles.known.stays, num_images * bundles.num_bundles);
  pieces.take(bundles.known.goes, num_images * bundles.num_bundles);
  pieces.take(bundles.bales, num_images * bundles.num_bales);
  pieces.take(in.places, total);
  pieces.take(in.num_entries, total);
  pieces.take(in.entries, total * kEntries);
  return pieces.used();
}

// What the launches need, and the tensors that own its memory.
template <typename T>
struct Plan {
  Suppression<T> in;
  Ordering ordering;
  Tensor boxes, workspace;
};

// Boxes (B, N, 4) and scores (B, N) are contiguous and of type T; groups (B, N) and counts (B,) are
// int64, and each may be absent. Rows from an image's count on are never read.
template <typename T>
Plan<T> plan_suppression(const Tensor& boxes, const Tensor& scores, T threshold, int64_t max_keep,
                         const std::optional<Tensor>& groups, const std::optional<Tensor>& counts,
                         const Tensor& keep_counts) {
  const Tensor boxes_in = aligned(boxes);
  const int64_t num_images = boxes.size(0), n = boxes.size(1);
  STD_TORCH_CHECK(n <= INT32_MAX, "fastdet: NMS: more than 2^31 - 1 boxes in an image");
  const auto divided = [n](int64_t size) { return std::max<int64_t>(1, (n + size - 1) / size); };
  Suppression<T> in = {};
  in.orders.boxes = data<Box<T>>(boxes_in);
  in.orders.scores = data<T>(scores);
  in.orders.groups = groups ? data<int64_t>(*groups) : nullptr;
  in.orders.counts = counts ? data<int64_t>(*counts) : nullptr;
  in.orders.num_images = num_images;
  in.orders.n = in.bundles.n = n;
  const bool counted = double(n) * n * num_images <= kMostCountedPairs;
  const Ordering ordering = n > kMostByBins ? Ordering::kTiles
                            : counted       ? Ordering::kCount
                                            : Ordering::kScoreTiles;
  in.orders.num_tiles =
      static_cast<int>(divided(ordering == Ordering::kTiles ? kTile : kScoreTile));
  in.bundles.num_bundles = divided(kWarp);
  in.bundles.num_bales = divided(kBale);
  in.threshold = threshold;
  in.filter = in.threshold > T(1e-6) ? in.threshold * kShrink<T> : T(0);
  in.keep_counts = mutable_data<int64_t>(keep_counts);
  in.max_keep = max_keep;
  const int64_t bytes = take_arrays(nullptr, ordering, in);
  const Tensor workspace = empty(boxes, {bytes}, ScalarType::Byte);
  take_arrays(workspace.mutable_data_ptr(), ordering, in);
  return {in, ordering, boxes_in, workspace};
}

// A grid of as many blocks for each image.
template <typename T>
dim3 blocks_of_images(const Suppression<T>& in, int64_t of_image) {
  return dim3(static_cast<unsigned>(in.orders.num_images * of_image));
}

// How many blocks an image gets if a block takes `per_block` rows at a time.
template <typename T>
int64_t share_of_image(const Suppression<T>& in, int64_t per_block) {
  const int64_t images = std::max<int64_t>(in.orders.num_images, 1);
  const int64_t most = std::max<int64_t>(kSettleBlocks / images, 32);
  return std::clamp<int64_t>((in.orders.n + per_block - 1) / per_block, 1, most);
}

template <typename T>
void launch_order(const Plan<T>& plan, cudaStream_t stream) {
  const Suppression<T>& in = plan.in;
  const dim3 threads(kOrderThreads);
  if (plan.ordering == Ordering::kTiles) {
    sort_by_tiles(in.orders, stream);
    launch(bundle_kernel<T>, blocks_of_images(in, in.bundles.num_bales), threads, 0, stream, in);
  } else if (plan.ordering == Ordering::kScoreTiles) {
    launch(order_tiles_kernel<T>, blocks_of_images(in, 1 + in.orders.num_tiles), threads, 0, stream,
           in);
  } else {
    const int64_t of_ranks = (in.orders.n + kRanksPerBlock - 1) / kRanksPerBlock;
    launch(order_kernel<T>, blocks_of_images(in, 1 + of_ranks), threads, 0, stream, in);
  }
}

// After launch_order. On the device it calls write(image, k, row) for each k below max_keep, with
// row -1 beyond the last kept row, and sets keep_counts (B,), int64.
template <OverlapMetric metric, typename T, typename Write>
void launch_suppression(const Plan<T>& plan, const Write& write, cudaStream_t stream) {
  const Suppression<T>& in = plan.in;
  const int64_t of_settle = share_of_image(in, kSettleThreads / kWarp);
  const int64_t of_decide = share_of_image(in, kThreads);
  const int64_t of_merge = plan.ordering == Ordering::kScoreTiles
                               ? in.orders.num_tiles * int64_t(kScoreTile / kSettleThreads)
                               : 0;
  const auto settle_all = [&](Pass pass) {
    const int64_t blocks = of_settle + (pass == Pass::kFirst ? of_merge : 0);
    launch(settle_kernel<metric, T>, blocks_of_images(in, blocks), dim3(kSettleThreads), 0, stream,
           in, of_settle, pass);
  };
  settle_all(Pass::kFirst);
  settle_all(Pass::kNote);
  if (plan.ordering == Ordering::kTiles) {
    launch(decide_kernel<T>, blocks_of_images(in, of_decide), dim3(kThreads), 0, stream, in,
           of_decide);
    settle_all(Pass::kAgain);
  }
  launch(resolve_kernel<metric, T, Write>, blocks_of_images(in, 1), dim3(kResolveThreads<T>), 0,
         stream, in, write);
}

// See plan_suppression and launch_suppression.
template <typename T, typename Write>
void greedy_nms(const Tensor& boxes, const Tensor& scores, double iou_threshold, int64_t max_keep,
                const std::optional<Tensor>& groups, const std::optional<Tensor>& counts,
                const Tensor& keep_counts, const Write& write) {
  const cudaStream_t stream = current_stream(boxes);
  const Plan<T> plan = plan_suppression<T>(boxes, scores, round_down<T>(iou_threshold), max_keep,
                                           groups, counts, keep_counts);
  launch_order(plan, stream);
  launch_suppression<OverlapMetric::kIou>(plan, write, stream);
}

}  // namespace fastdet::cuda
