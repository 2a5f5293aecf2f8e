// SPDX-License-Identifier: BSD-3-Clause
// Bundles of 32 boxes that lie close together, and bales of 32 bundles. They speed up the search
// for the boxes that overlap a given box. A warp tests 32 bales at a time, then the bundles of the
// bales that pass, then the boxes of the bundles that pass.
//
// If IoU(a, b) > t, then the overlap is wider than t * width(a) and higher than t * height(a), and
// each area is at least t times the other. A bundle is skipped if its hull or its areas rule this
// out: at t = 0.5 only bundles whose hull contains the centre of `a` remain. To keep the hulls
// small, boxes are sorted by area (in classes of a factor of 16) and then along a Z curve. For n
// boxes spread over an image, each side of a hull is about sqrt(32 / n) of the image's side, plus
// one box. The IoS of boxes of very different sizes may be 1, so for the IoS a bundle is skipped
// only if its hull does not touch the box.
//
// Bundles know nothing of groups, but a search reads only the bundles of its group's bucket
// (box_orders.cuh). If several groups have boxes in the same places, as the classes of a head, this
// is a 32nd of them.
//
// Skipping never changes the result. kShrink covers the rounding errors of pairs whose areas have
// full precision. A box with a smaller area or side (kTiny) is compared with every box that it
// touches.
#pragma once

#include <limits>

#include "../device/block_sum.cuh"
#include "../geometry/overlap.h"
#include "box_orders.cuh"

namespace fastdet::cuda {

constexpr int kBale = kWarp * kWarp;  // boxes
static_assert(kBale == kOrderThreads);

template <typename T>
constexpr T kShrink = T(1) - 16 * std::numeric_limits<T>::epsilon();

template <typename T>
struct Areas {
  T least, most;
};

// The bounding box of several boxes, and the range of their areas.
template <typename T>
struct Hull {
  Box<T> box;
  Areas<T> areas;

  static __device__ Hull of_none() {
    constexpr T kFar = std::numeric_limits<T>::infinity();
    return {{kFar, kFar, -kFar, -kFar}, {kFar, -kFar}};
  }

  static __device__ Hull of(const Box<T>& box) {
    const T own = area(box);
    return {box, {own < kTiny<T> ? T(0) : own, own}};
  }
};

template <typename T>
struct Hulls {
  Box<T>* boxes;
  Areas<T>* areas;

  __device__ Hull<T> load(int64_t i) const { return {load_box(boxes + i), areas[i]}; }
  __device__ void store(int64_t i, const Hull<T>& hull) const {
    store_box(boxes + i, hull.box);
    areas[i] = hull.areas;
  }
  __device__ Hulls from(int64_t i) const { return {boxes + i, areas + i}; }
};

template <typename T>
__device__ T least_of_warp(T x) {
  for (int d = kWarp / 2; d > 0; d /= 2) x = min_of(x, __shfl_xor_sync(kAllLanes, x, d));
  return x;
}

template <typename T>
__device__ Hull<T> hull_of_warp(const Hull<T>& own) {
  const auto most_of_warp = [](T x) { return -least_of_warp(-x); };
  return {{least_of_warp(own.box.x1), least_of_warp(own.box.y1), most_of_warp(own.box.x2),
           most_of_warp(own.box.y2)},
          {least_of_warp(own.areas.least), most_of_warp(own.areas.most)}};
}

// What is known about the boxes, one bit for each place. A box waits as long as neither bit is set.
// Bits are set and never cleared, so reading an old state costs work but stays correct.
enum State { kWaits, kStays, kGoes };

struct Known {
  uint32_t *stays, *goes;

  // The bits of the 32 boxes of a bundle.
  __device__ uint32_t stay(int64_t bundle) const { return of(stays, bundle); }
  __device__ uint32_t go(int64_t bundle) const { return of(goes, bundle); }

  __device__ State state(int64_t place) const {
    const auto bit_of = [&](uint32_t word) { return word >> place % kWarp & 1; };
    if (bit_of(stay(place / kWarp))) return kStays;
    return bit_of(go(place / kWarp)) ? kGoes : kWaits;
  }

  __device__ void set(int64_t place, State state) const {
    if (state == kWaits) return;
    atomicOr((state == kStays ? stays : goes) + place / kWarp, uint32_t(1) << place % kWarp);
  }

  __device__ Known from(int64_t bundle) const { return {stays + bundle, goes + bundle}; }

 private:
  static __device__ uint32_t of(const volatile uint32_t* words, int64_t i) { return words[i]; }
};

// The bundles of all images, or of one image.
template <typename T>
struct BoxBundles {
  Box<T>* boxes;      // (B, n) by place
  Turn<T>* turns;     // (B, n) by place
  int64_t* groups;    // (B, n) by place, or null
  uint32_t* buckets;  // (B, kBuckets + 1): the first place of each bucket, and the end; or null
  Hulls<T> hulls;     // (B, num_bundles)
  Known known;        // (B, num_bundles)
  Hulls<T> bales;     // (B, num_bales)
  int64_t n, num_bundles, num_bales;

  __device__ BoxBundles of(int64_t image) const {
    return {boxes + image * n,
            turns + image * n,
            groups ? groups + image * n : nullptr,
            groups ? buckets + image * (kBuckets + 1) : nullptr,
            hulls.from(image * num_bundles),
            known.from(image * num_bundles),
            bales.from(image * num_bales),
            n,
            num_bundles,
            num_bales};
  }
};

// Stores one bale of an image. A whole block of kOrderThreads calls it; each thread holds the box
// of one place, if there is one (`any`).
template <typename T>
__device__ void store_bale(const BoxBundles<T>& out, int64_t bale, const Box<T>& box, bool any) {
  __shared__ Hull<T> hulls[kWarp];
  const bool counts = any && can_overlap(box, area(box));
  const Hull<T> hull = hull_of_warp(counts ? Hull<T>::of(box) : Hull<T>::of_none());
  const unsigned stay = __ballot_sync(kAllLanes, any && !counts);
  const unsigned go = __ballot_sync(kAllLanes, !any);
  const int64_t bundle = bale * kWarp + warp();
  if (lane() == 0) {
    hulls[warp()] = hull;
    if (bundle < out.num_bundles) {
      out.hulls.store(bundle, hull);
      out.known.stays[bundle] = stay;
      out.known.goes[bundle] = go;
    }
  }
  __syncthreads();
  if (warp() == 0) {
    const Hull<T> all = hull_of_warp(hulls[lane()]);
    if (lane() == 0) out.bales.store(bale, all);
  }
  __syncthreads();  // the next bale overwrites the hulls
}

// ---- places by bins -----------------------------------------------------------------------------

// What the bins of an image depend on.
struct Extent {
  Hull<float> centres;  // the hull of the centres of the boxes, and their largest area
  uint32_t buckets;     // the buckets that have boxes, as bits
};

// The bin of a box: its bucket, 8 classes of area, the largest first, then a Z curve over 32 * 32
// cells of box centres. The buckets that have boxes share the bins, so with many buckets the cells
// are larger. A box that cannot overlap any box may get any bin of its bucket.
struct Bins {
  static constexpr int kBits = 13, kNum = 1 << kBits, kCells = 32, kClasses = 8;
  static_assert(kNum == kClasses * kCells * kCells && kBuckets <= kWarp);
  // A word of padding after every 32, so that the lanes of sum_up use different banks.
  static constexpr int kWords = kNum + kNum / kWarp;

  static __device__ int word(int bin) { return bin + bin / kWarp; }

  float x, y, x_scale, y_scale;
  uint32_t largest;  // class
  uint32_t buckets;
  int num_buckets, bucket_bits;

  __device__ explicit Bins(const Extent& extent)
      : x(extent.centres.box.x1),
        y(extent.centres.box.y1),
        x_scale(kCells / (extent.centres.box.x2 - x)),
        y_scale(kCells / (extent.centres.box.y2 - y)),
        largest(size_class(extent.centres.areas.most)),
        buckets(extent.buckets) {
    // Not among the initialisers above, which nvcc gives to the host's compiler, too.
    num_buckets = __popc(buckets);
    bucket_bits = num_buckets > 1 ? 32 - __clz(num_buckets - 1) : 0;
  }

  // How many buckets that have boxes come before this one, which may be kBuckets.
  __device__ int num_before(uint32_t bucket) const {
    return bucket < kBuckets ? __popc(buckets & ((1u << bucket) - 1)) : num_buckets;
  }

  // The first bin of the bucket with as many before it.
  __device__ int first_bin(int num_before) const { return num_before << (kBits - bucket_bits); }

  template <typename T>
  static __device__ float centre(T low, T high) {
    return static_cast<float>(low / 2 + high / 2);
  }

  // If all centres are equal, the product is NaN and the cell is 0.
  static __device__ uint32_t cell(float distance, float scale) {
    return static_cast<uint32_t>(min_of(max_of(distance * scale, 0.f), kCells - 1.f));
  }

  template <typename T>
  __device__ int of(const Box<T>& box, uint32_t bucket) const {
    const uint32_t own = size_class(area(box));
    const uint32_t smaller = min_of<uint32_t>(largest - min_of(own, largest), kClasses - 1);
    const uint32_t fine = smaller * (kCells * kCells) |
                          spread(cell(centre(box.x1, box.x2) - x, x_scale)) << 1 |
                          spread(cell(centre(box.y1, box.y2) - y, y_scale));
    return first_bin(num_before(bucket)) | static_cast<int>(fine >> bucket_bits);
  }
};

__device__ inline uint32_t bits_of_warp(uint32_t bits) {
  for (int d = kWarp / 2; d > 0; d /= 2) bits |= __shfl_xor_sync(kAllLanes, bits, d);
  return bits;
}

// A whole block of kOrderThreads calls it.
template <typename T, typename ForEachBox>
__device__ Extent extent_of(const ForEachBox& for_each_box) {
  __shared__ Hull<float> hulls[kWarp];
  __shared__ uint32_t buckets_of_warps[kWarp];
  Hull<float> own = Hull<float>::of_none();
  uint32_t own_buckets = 0;
  for_each_box([&](int64_t, const Box<T>& box, uint32_t bucket) {
    own_buckets |= 1u << bucket;
    const T box_area = area(box);
    if (!can_overlap(box, box_area)) return;
    const float x = Bins::centre(box.x1, box.x2), y = Bins::centre(box.y1, box.y2);
    own.box = {min_of(own.box.x1, x), min_of(own.box.y1, y), max_of(own.box.x2, x),
               max_of(own.box.y2, y)};
    own.areas.most = max_of(own.areas.most, static_cast<float>(box_area));
  });
  own = hull_of_warp(own);
  own_buckets = bits_of_warp(own_buckets);
  if (lane() == 0) hulls[warp()] = own, buckets_of_warps[warp()] = own_buckets;
  __syncthreads();
  return {hull_of_warp(hulls[lane()]), bits_of_warp(buckets_of_warps[lane()])};
}

// Replaces the number of each bin by the sum of the numbers before it, and returns the total. A
// whole block of kOrderThreads calls it.
__device__ inline uint32_t sum_up(uint32_t (&numbers)[Bins::kWords]) {
  constexpr int kOwn = Bins::kNum / kOrderThreads;
  static_assert(kWarp % kOwn == 0);  // no padding within a thread's own bins
  uint32_t* const own = numbers + Bins::word(threadIdx.x * kOwn);
  uint32_t sum = 0;
  for (int i = 0; i < kOwn; ++i) sum += own[i];
  const auto [before, total] = block_sum<kOrderThreads>(sum);
  sum = before;
  for (int i = 0; i < kOwn; ++i) {
    const uint32_t number = own[i];
    own[i] = sum;
    sum += number;
  }
  __syncthreads();
  return total;
}

// Gives the boxes of an image their places and bundles. A whole block of kOrderThreads calls it,
// with shared memory for the numbers of boxes in the bins. The order of the places within a bin is
// arbitrary; the result does not depend on it.
template <typename T>
__device__ void place_by_bins(const BoxOrders<T>& in, int64_t image, uint32_t* places,
                              const BoxBundles<T>& all, uint32_t (&numbers)[Bins::kWords]) {
  const BoxBundles<T> out = all.of(image);
  const int64_t begin = image * in.n, n = in.count(image);
  const auto for_each_box = [&](const auto& body) {
    for (int64_t row = threadIdx.x; row < n; row += kOrderThreads)
      if (in.key_of_score(image, row) != kLeftOut<T>)
        body(row, load_box(in.boxes + begin + row), in.bucket(image, row));
  };
  for (int i = threadIdx.x; i < Bins::kWords; i += kOrderThreads) numbers[i] = 0;
  const Bins bins(extent_of<T>(for_each_box));
  const auto number_of = [&](const Box<T>& box, uint32_t bucket) {
    return numbers + Bins::word(bins.of(box, bucket));
  };
  for_each_box(
      [&](int64_t, const Box<T>& box, uint32_t bucket) { atomicAdd(number_of(box, bucket), 1u); });
  __syncthreads();
  const uint32_t usable = sum_up(numbers);
  if (in.groups && threadIdx.x <= kBuckets) {
    const int before = bins.num_before(threadIdx.x);
    out.buckets[threadIdx.x] =
        before < bins.num_buckets ? numbers[Bins::word(bins.first_bin(before))] : usable;
  }
  __syncthreads();
  for_each_box([&](int64_t row, const Box<T>& box, uint32_t bucket) {
    const uint32_t place = atomicAdd(number_of(box, bucket), 1u);
    store_box(out.boxes + place, box);
    out.turns[place] = {in.key_of_score(image, row), static_cast<uint32_t>(row)};
    if (in.groups) out.groups[place] = in.groups[begin + row];
    places[begin + row] = place;
  });
  __syncthreads();
  for (uint32_t first = 0; first < usable; first += kBale) {
    const uint32_t place = first + threadIdx.x;
    store_bale(out, first / kBale, load_box(out.boxes + min_of(place, usable - 1)), place < usable);
  }
  if (threadIdx.x == 0) in.usable[image] = usable;
}

// ---- search -------------------------------------------------------------------------------------

// A box whose overlapping boxes are searched. All lanes of a warp hold the same one.
template <OverlapMetric metric, typename T>
struct Seeker {
  Box<T> box;
  T area, filter;   // the intersection with an overlapping box exceeds filter * denominator
  T width, height;  // and is wider and higher than these
  Turn<T> turn;
  int64_t group;

  __device__ Seeker(const Box<T>& b, const Turn<T>& turn, int64_t group, T proportional_filter)
      : box(b), area(fastdet::area(b)), turn(turn), group(group) {
    const T w = b.x2 - b.x1, h = b.y2 - b.y1;
    filter = min_of(area, min_of(w, h)) < kTiny<T> ? T(0) : proportional_filter;
    const T share = metric == OverlapMetric::kIos ? T(0) : filter;
    width = share * w;
    height = share * h;
  }

  // The two tests have no branch, so that all loads are issued at once.
  __device__ bool may_overlap(const Hull<T>& hull) const {
    const bool touches = (hull.box.x2 - box.x1 > width) & (box.x2 - hull.box.x1 > width) &
                         (hull.box.y2 - box.y1 > height) & (box.y2 - hull.box.y1 > height);
    if constexpr (metric == OverlapMetric::kIos) return touches;
    return touches & (hull.areas.most > filter * area) & (area > filter * hull.areas.least);
  }

  // False for most pairs that do not overlap, true for all pairs that do. It needs no division.
  __device__ bool may_overlap(const Box<T>& other) const {
    const T inter = intersection(box, other);
    const T denominator = overlap_denominator<metric>(area, fastdet::area(other), inter);
    // The smaller box may be tiny although this one is not.
    const bool tiny = metric == OverlapMetric::kIos && denominator < kTiny<T>;
    return inter > (tiny ? T(0) : filter * denominator);
  }

  __device__ bool overlaps(const Box<T>& other, T threshold) const {
    if (!may_overlap(other)) return false;
    const T other_area = fastdet::area(other);
    if constexpr (metric == OverlapMetric::kIou)
      return iou(box, area, other, other_area) > threshold;
    const T inter = intersection(box, other);
    return can_overlap(other, other_area) &&
           inter / overlap_denominator<metric>(area, other_area, inter) > threshold;
  }
};

// Which of the 32 hulls from `first` on may hold an overlapping box, as bits. A whole warp calls
// it.
template <OverlapMetric metric, typename T>
__device__ unsigned near(const Hulls<T>& hulls, int64_t first, int64_t end,
                         const Seeker<metric, T>& seeker, bool wanted = true) {
  const bool may = seeker.may_overlap(hulls.load(min_of(first + lane(), end - 1)));
  return __ballot_sync(kAllLanes, may & wanted & (first + lane() < end));
}

// The boxes of a bundle that come before the seeker and overlap it, as bits, without those in
// `gone`. `in` is the bundles of one image, whose places are the first n. A whole warp calls it.
template <OverlapMetric metric, typename T>
__device__ unsigned overlaps_in(const BoxBundles<T>& in, uint32_t n, int64_t bundle, uint32_t gone,
                                const Seeker<metric, T>& seeker, T threshold) {
  const uint32_t place = min_of(static_cast<uint32_t>(bundle) * kWarp + lane(), n - 1);
  const Box<T> box = load_box(in.boxes + place);
  bool overlaps =
      seeker.may_overlap(box) & in.turns[place].before(seeker.turn) & !(gone >> lane() & 1);
  if (in.groups) overlaps = overlaps & (in.groups[place] == seeker.group);
  if (overlaps) overlaps = seeker.overlaps(box, threshold);
  return __ballot_sync(kAllLanes, overlaps);
}

// Calls on_overlap(bundle, boxes) for each bundle that holds overlapping boxes (overlaps_in),
// without the boxes known to be removed. The search stops when on_overlap returns false. A whole
// warp calls it.
template <OverlapMetric metric, typename T, typename OnOverlap>
__device__ void look_through(const BoxBundles<T>& in, uint32_t n, const Known& known,
                             const Seeker<metric, T>& seeker, T threshold,
                             const OnOverlap& on_overlap) {
  uint32_t begin = 0, end = n;  // the places of the bucket
  if (in.groups) {
    const uint32_t* const bucket = in.buckets + bucket_of(seeker.group);
    begin = bucket[0], end = bucket[1];
  }
  const int64_t first_bundle = begin / kWarp, end_bundle = (end + kWarp - 1) / kWarp;
  const int64_t end_bale = (end + kBale - 1) / kBale;
  for (int64_t first = begin / kBale; first < end_bale; first += kWarp)
    for (unsigned bales = near(in.bales, first, end_bale, seeker); bales; bales &= bales - 1) {
      const int64_t bale = (first + __ffs(bales) - 1) * kWarp;
      const uint32_t own_gone = known.go(min_of(bale + lane(), end_bundle - 1));
      const bool wanted = (own_gone != kAllLanes) & (bale + lane() >= first_bundle);
      unsigned bundles = near(in.hulls, bale, end_bundle, seeker, wanted);
      for (; bundles; bundles &= bundles - 1) {
        const int own = __ffs(bundles) - 1;
        const uint32_t gone = __shfl_sync(kAllLanes, own_gone, own);
        const unsigned found = overlaps_in(in, n, bale + own, gone, seeker, threshold);
        if (found && !on_overlap(bale + own, found)) return;
      }
    }
}

}  // namespace fastdet::cuda
