// SPDX-License-Identifier: BSD-3-Clause
// An IoU takes 15 vector operations, a class two conversions and a product, a cost about 80
// operations: three logarithms of 20, and an IoU.
#include "simota.loops.h"

#include <bit>

#include "../isa/lanes.h"
#include "gathered.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

template <typename S>
inline __attribute__((always_inline)) LaneMask<S> inside(const Lanes<S>& x, const Lanes<S>& y,
                                                         const Box<S>& box) {
  return (x > all_lanes(box.x1)) & (x < all_lanes(box.x2)) & (y > all_lanes(box.y1)) &
         (y < all_lanes(box.y2));
}

template <typename S>
inline __attribute__((always_inline)) LaneMask<S> centred(const Lanes<S>& x, const Lanes<S>& y,
                                                          const Lanes<S>& reach, S at_x, S at_y) {
  const Lanes<S> cx = all_lanes(at_x), cy = all_lanes(at_y);
  return (x > cx - reach) & (x < cx + reach) & (y > cy - reach) & (y < cy + reach);
}

template <typename S>
uint64_t covered_points(const StridedPoints<S>& points, int64_t block, const SimotaGts<S>& gts,
                        S radius) {
  const StridedPoints<S> in = points;
  const SimotaGts<S> g = gts;
  const BoxArrays<S>& hulls = in.points.hulls;
  const Lanes<S> x1 = all_lanes(hulls.x1[block]), y1 = all_lanes(hulls.y1[block]);
  const Lanes<S> x2 = all_lanes(hulls.x2[block]), y2 = all_lanes(hulls.y2[block]);
  const Lanes<S> most = all_lanes(radius * in.largest_stride[block]);
  const int64_t begin = block * kPointBlock;
  uint64_t covered = 0;
  for (int64_t i = 0; i < g.padded && ~covered; i += kLanesOf<S>) {
    const Lanes<S> x = load_lanes(g.x + i), y = load_lanes(g.y + i);
    const auto by_box = (x1 < load_lanes(g.boxes.x2 + i)) & (x2 > load_lanes(g.boxes.x1 + i)) &
                        (y1 < load_lanes(g.boxes.y2 + i)) & (y2 > load_lanes(g.boxes.y1 + i));
    const auto by_centre = (x1 < x + most) & (x2 > x - most) & (y1 < y + most) & (y2 > y - most);
    uint32_t touching = lane_bits(by_box | by_centre);
    for (; touching && ~covered; touching &= touching - 1) {
      const int64_t k = i + std::countr_zero(touching);
      const Box<S> box = {g.boxes.x1[k], g.boxes.y1[k], g.boxes.x2[k], g.boxes.y2[k]};
      for (int64_t p = 0; p < kPointBlock; p += kLanesOf<S>) {
        const Lanes<S> px = load_lanes(in.points.x + begin + p);
        const Lanes<S> py = load_lanes(in.points.y + begin + p);
        const Lanes<S> reach = all_lanes(radius) * load_lanes(in.strides + begin + p);
        const uint64_t bits =
            lane_bits(inside<S>(px, py, box) | centred<S>(px, py, reach, g.x[k], g.y[k]));
        covered |= bits << p;
      }
    }
  }
  return covered;
}

template <typename S>
int64_t centre_points(const StridedPoints<S>& points, const SimotaGt<S>& gt, S radius,
                      int32_t* rows) {
  const StridedPoints<S> in = points;
  const BoxArrays<S>& hulls = in.points.hulls;
  int32_t* next = rows;
  for (int64_t b = 0; b < in.points.num_blocks; ++b) {
    const S most = radius * in.largest_stride[b];
    const bool touches = hulls.x1[b] < min_of(gt.box.x2, gt.x + most) &&
                         hulls.x2[b] > max_of(gt.box.x1, gt.x - most) &&
                         hulls.y1[b] < min_of(gt.box.y2, gt.y + most) &&
                         hulls.y2[b] > max_of(gt.box.y1, gt.y - most);
    if (!touches) continue;
    for (int64_t i = b * kPointBlock; i < (b + 1) * kPointBlock; i += kLanesOf<S>) {
      const Lanes<S> x = load_lanes(in.points.x + i), y = load_lanes(in.points.y + i);
      const Lanes<S> reach = all_lanes(radius) * load_lanes(in.strides + i);
      uint32_t bits = lane_bits(inside<S>(x, y, gt.box) & centred<S>(x, y, reach, gt.x, gt.y));
      for (; bits; bits &= bits - 1) *next++ = static_cast<int32_t>(i + std::countr_zero(bits));
    }
  }
  return next - rows;
}

// The largest values so far, by falling value.
template <typename S>
struct Largest {
  S* values;
  int64_t n, size = 0;
  S least = S(0);  // a value that is not above it is not among them

  __attribute__((always_inline)) void add(S value) {
    int64_t place = size < n ? size++ : n - 1;
    for (; place > 0 && values[place - 1] < value; --place) values[place] = values[place - 1];
    values[place] = value;
    if (size == n) least = values[n - 1];
  }
};

template <typename S>
int64_t largest_ious(const BlockedBoxes<S>& boxes, const Box<S>& gt, int64_t n, S* largest) {
  const BlockedBoxes<S> in = boxes;
  const Lanes<S> x1 = all_lanes(gt.x1), y1 = all_lanes(gt.y1), x2 = all_lanes(gt.x2),
                 y2 = all_lanes(gt.y2), gt_area = all_lanes(area(gt));
  Largest<S> found = {largest, n};
  for (int64_t b = 0; b < in.num_blocks; b += kLanesOf<S>) {
    uint32_t touched =
        lane_bits((load_lanes(in.hulls.x1 + b) < x2) & (load_lanes(in.hulls.x2 + b) > x1) &
                  (load_lanes(in.hulls.y1 + b) < y2) & (load_lanes(in.hulls.y2 + b) > y1));
    for (; touched; touched &= touched - 1) {
      const int64_t begin = (b + std::countr_zero(touched)) * kPointBlock;
      for (int64_t i = begin; i < begin + kPointBlock; i += kLanesOf<S>) {
        const Lanes<S> bx1 = load_lanes(in.boxes.x1 + i), by1 = load_lanes(in.boxes.y1 + i);
        const Lanes<S> bx2 = load_lanes(in.boxes.x2 + i), by2 = load_lanes(in.boxes.y2 + i);
        const Lanes<S> width = (x2 < bx2 ? x2 : bx2) - (x1 > bx1 ? x1 : bx1);
        const Lanes<S> height = (y2 < by2 ? y2 : by2) - (y1 > by1 ? y1 : by1);
        const Lanes<S> inter = positive_part<S>(width) * positive_part<S>(height);
        const Lanes<S> iou = inter / ((bx2 - bx1) * (by2 - by1) + gt_area - inter);
        uint32_t bits = lane_bits(iou > all_lanes(found.least));
        for (; bits; bits &= bits - 1) {
          const S value = iou[std::countr_zero(bits)];
          if (value > found.least) found.add(value);
        }
      }
    }
  }
  return found.size;
}

template <typename T>
Sum<T> sum_classes(const T* scores, int64_t n) {
  double product[kClassLanes];
  int64_t exponent = 0, ones = 0;
  for (int k = 0; k < kClassLanes; ++k) product[k] = 1;
  constexpr int64_t kRun = kClassLanes * kClassSteps;
  for (int64_t run = 0; run < n; run += kRun) {
    const int64_t end = min_of(n, run + kRun);
    int64_t c = run;
    for (; c + kClassLanes <= end; c += kClassLanes)
      for (int k = 0; k < kClassLanes; ++k) {
        const double p = static_cast<double>(static_cast<Sum<T>>(scores[c + k]));
        product[k] *= class_factor(p);
        ones += p == 1;
      }
    for (int k = 0; c + k < end; ++k) {
      const double p = static_cast<double>(static_cast<Sum<T>>(scores[c + k]));
      product[k] *= class_factor(p);
      ones += p == 1;
    }
    for (int k = 0; k < kClassLanes; ++k) {
      if (product[k] != product[k]) return std::numeric_limits<Sum<T>>::quiet_NaN();
      exponent += take_exponent(product[k]);
    }
  }
  for (int half = kClassLanes / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) product[k] *= product[k + half];
  return class_sum<Sum<T>>(product[0], exponent, ones);
}

template <typename T>
void costs(const Predictions<T>& in, const Sum<T>* sums, const int32_t* anchors, int64_t n,
           const Box<Sum<T>>& gt, int64_t label, const SimotaRule<Sum<T>>& rule, Sum<T>* cost) {
  using S = Sum<T>;
  const SimotaRule<S> r = rule;
  const Box<S> g = gt;
  const S gt_area = area(g);
  Gathered<S> run;
  S sum[kGathered];
  for (int64_t begin = 0; begin < n; begin += kGathered) {
    const int64_t length = min_of(kGathered, n - begin);
    gather(in, anchors + begin, length, label, run);
    for (int64_t i = 0; i < length; ++i) sum[i] = sums[anchors[begin + i]];
    FASTDET_INDEPENDENT_ITERATIONS
    for (int64_t i = 0; i < length; ++i) {
      const Box<S> box = run.box(i);
      cost[begin + i] = simota_cost(sum[i], run.score[i], iou(box, area(box), g, gt_area), r);
    }
  }
}

template <typename S>
constexpr SimotaLoops<S> kLoops = {
    .covered_points = covered_points<S>,
    .centre_points = centre_points<S>,
    .largest_ious = largest_ious<S>,
};

template <typename T>
constexpr SimotaScoreLoops<T> kScoreLoops = {
    .sum_classes = sum_classes<T>,
    .costs = costs<T>,
};

}  // namespace

FASTDET_LOOPS(SimotaLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(SimotaLoops<double>) { return kLoops<double>; }
FASTDET_LOOPS(SimotaScoreLoops<float>) { return kScoreLoops<float>; }
FASTDET_LOOPS(SimotaScoreLoops<double>) { return kScoreLoops<double>; }
FASTDET_LOOPS(SimotaScoreLoops<Half>) { return kScoreLoops<Half>; }
FASTDET_LOOPS(SimotaScoreLoops<BFloat16>) { return kScoreLoops<BFloat16>; }

}  // namespace fastdet::cpu::FASTDET_ISA
