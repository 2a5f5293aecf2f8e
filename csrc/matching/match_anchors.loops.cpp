// SPDX-License-Identifier: BSD-3-Clause
// The IoU of blocks of anchors with all ground-truth boxes (gts). The anchors stay in registers
// while the loop goes over the gts, and only the gt is read from memory. A pair needs 15 vector
// operations, one of them a division.
//
// The matcher uses an IoU only if it is above 0. So for a pair that does not overlap, any value
// will do that is not above 0: areas are >= 0, so its quotient is <= 0 or NaN, and every comparison
// with it is false. This saves the clamp of one side and the test of the union. If both sides are
// positive, the operands and their order are those of iou(), and so the result has the same bits.
#include "match_anchors.loops.h"

#include <limits>

#include "../isa/lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

#if defined(__AVX512F__)
constexpr int kMatchVectors = 2;
#else
constexpr int kMatchVectors = 1;
#endif

template <typename T>
struct AnchorLanes {
  Lanes<T> x1, y1, x2, y2, area;

  __attribute__((always_inline)) AnchorLanes(const AnchorBlock<T>& block, int64_t i)
      : x1(load_lanes(block.x1 + i)),
        y1(load_lanes(block.y1 + i)),
        x2(load_lanes(block.x2 + i)),
        y2(load_lanes(block.y2 + i)),
        area(load_lanes(block.area + i)) {}

  // The IoU with gt g if it is above 0, else any value that is not above 0.
  __attribute__((always_inline)) Lanes<T> iou_with(const GtPlanes<T>& gts, int64_t g) const {
    const Lanes<T> zero = {};
    const Lanes<T> gx1 = gts.x1[g] - zero, gy1 = gts.y1[g] - zero;
    const Lanes<T> gx2 = gts.x2[g] - zero, gy2 = gts.y2[g] - zero;
    const Lanes<T> width = (gx2 < x2 ? gx2 : x2) - (gx1 > x1 ? gx1 : x1);
    const Lanes<T> height = (gy2 < y2 ? gy2 : y2) - (gy1 > y1 ? gy1 : y1);
    const Lanes<T> inter = (width > zero ? width : zero) * height;
    return inter / (gts.area[g] + area - inter);
  }
};

template <typename T>
void load_anchors(const Box<T>* boxes, int64_t n, AnchorBlock<T>& block) {
  constexpr T kInf = std::numeric_limits<T>::infinity();
  constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
  for (int64_t i = 0; i < n; ++i) {
    const Box<T> b = {boxes[i].x1, boxes[i].y1, boxes[i].x2, boxes[i].y2};
    const bool finite = b.x1 - b.x1 + (b.y1 - b.y1) + (b.x2 - b.x2) + (b.y2 - b.y2) == T(0);
    const bool proper = finite & (b.x1 < b.x2) & (b.y1 < b.y2);
    block.x1[i] = proper ? b.x1 : kInf;
    block.y1[i] = proper ? b.y1 : kInf;
    block.x2[i] = proper ? b.x2 : -kInf;
    block.y2[i] = proper ? b.y2 : -kInf;
    block.area[i] = proper ? area(b) : finite ? kInf : kNan;
  }
  for (int64_t i = n; i < kMatchBlock; ++i) {
    block.x1[i] = block.y1[i] = kInf;
    block.x2[i] = block.y2[i] = -kInf;
    block.area[i] = kInf;
  }
  constexpr int64_t kLanes = kMatchLanes<T>;
  T x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) x1[l] = y1[l] = kInf, x2[l] = y2[l] = -kInf;
  for (int64_t i = 0; i < kMatchBlock; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) {
      x1[l] = min_of(x1[l], block.x1[i + l]);
      y1[l] = min_of(y1[l], block.y1[i + l]);
      x2[l] = max_of(x2[l], block.x2[i + l]);
      y2[l] = max_of(y2[l], block.y2[i + l]);
    }
  block.hull = {kInf, kInf, -kInf, -kInf};
  for (int64_t l = 0; l < kLanes; ++l)
    block.hull = {min_of(block.hull.x1, x1[l]), min_of(block.hull.y1, y1[l]),
                  max_of(block.hull.x2, x2[l]), max_of(block.hull.y2, y2[l])};
}

// Writes to `chosen` the gts that may overlap an anchor within the hull. Returns how many.
template <typename T>
int64_t choose_gts(const GtPlanes<T>& gts, const Box<T>& hull, int32_t* chosen) {
  const Box<T> h = hull;
  int64_t n = 0;
  for (int64_t g = 0; g < gts.size; ++g) {
    chosen[n] = static_cast<int32_t>(g);
    n += (gts.x1[g] < h.x2) & (gts.x2[g] > h.x1) & (gts.y1[g] < h.y2) & (gts.y2[g] > h.y1);
  }
  return n;
}

template <typename T>
void add_maxima(const GtMaxima<T>& maxima, int64_t g, int64_t block) {
  const auto index = static_cast<LaneInt<T>>(block);
  const int64_t begin = g * kMatchLanes<T>;
  FASTDET_INDEPENDENT_ITERATIONS
  for (int64_t i = begin; i < begin + kMatchLanes<T>; ++i) {
    const T iou = maxima.of_block[i], best = maxima.best[i];
    maxima.first[i] = iou > best ? index : maxima.first[i];
    maxima.last[i] = iou >= best ? index : maxima.last[i];
    maxima.best[i] = max_of(iou, best);
    maxima.of_block[i] = T(0);
  }
}

template <typename T>
void best_matches(const AnchorBlock<T>& anchors, const GtPlanes<T>& gts, int64_t block,
                  int32_t* chosen, const GtMaxima<T>& maxima, T* best_iou, LaneInt<T>* best_row) {
  using Floats = Lanes<T>;
  using Ints = Lanes<LaneInt<T>>;
  constexpr int64_t kLanes = kLanesOf<T>;
  const GtPlanes<T> in = gts;
  const int64_t num_chosen = choose_gts(in, anchors.hull, chosen);
  const Ints lowest = Ints{} + (in.size > 0 ? in.row[0] : -1);
  for (int64_t i = 0; i < kMatchBlock; i += kMatchVectors * kLanes) {
    const AnchorLanes<T> first(anchors, i), second(anchors, i + (kMatchVectors - 1) * kLanes);
    Floats iou1 = {}, iou2 = {};
    Ints row1 = lowest, row2 = lowest;
    for (int64_t k = 0; k < num_chosen; ++k) {
      const int64_t g = chosen[k];
      T* const most = maxima.of_block + g * kMatchLanes<T> + i % kMatchLanes<T>;
      const Ints row = Ints{} + in.row[g];
      const Floats overlap1 = first.iou_with(in, g);
      row1 = overlap1 > iou1 ? row : row1;
      iou1 = overlap1 > iou1 ? overlap1 : iou1;
      Floats more = load_lanes(most);
      more = overlap1 > more ? overlap1 : more;
      if constexpr (kMatchVectors == 2) {
        const Floats overlap2 = second.iou_with(in, g);
        row2 = overlap2 > iou2 ? row : row2;
        iou2 = overlap2 > iou2 ? overlap2 : iou2;
        more = overlap2 > more ? overlap2 : more;
      }
      store_lanes<T>(more, most);
    }
    store_lanes<T>(iou1, best_iou + i);
    store_lanes<LaneInt<T>>(row1, best_row + i);
    if constexpr (kMatchVectors == 2) {
      store_lanes<T>(iou2, best_iou + i + kLanes);
      store_lanes<LaneInt<T>>(row2, best_row + i + kLanes);
    }
  }
  for (int64_t k = 0; k < num_chosen; ++k) add_maxima(maxima, chosen[k], block);
}

template <typename T>
void find_rescuers(const AnchorBlock<T>& anchors, const GtPlanes<T>& gts, int64_t g, T wanted,
                   LaneInt<T>* rescuer) {
  using Ints = Lanes<LaneInt<T>>;
  constexpr int64_t kLanes = kLanesOf<T>;
  for (int64_t i = 0; i < kMatchBlock; i += kLanes) {
    const Lanes<T> overlap = AnchorLanes<T>(anchors, i).iou_with(gts, g);
    const Ints found = load_lanes(rescuer + i);
    store_lanes<LaneInt<T>>(overlap == wanted ? Ints{} + gts.row[g] : found, rescuer + i);
  }
}

template <typename T>
void label_anchors(const AnchorBlock<T>& anchors, int64_t n, const MatchRule<T>& rule,
                   const T* best_iou, const LaneInt<T>* best_row, const LaneInt<T>* rescuer,
                   int64_t* index) {
  const MatchRule<T> r = rule;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t label = r.label(best_iou[i], best_row[i], rescuer[i]);
    index[i] = anchors.area[i] == anchors.area[i] ? label : -2;
  }
}

template <typename T>
constexpr MatchLoops<T> kLoops = {
    .load_anchors = load_anchors<T>,
    .best_matches = best_matches<T>,
    .find_rescuers = find_rescuers<T>,
    .label_anchors = label_anchors<T>,
};

}  // namespace

FASTDET_LOOPS(MatchLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(MatchLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
