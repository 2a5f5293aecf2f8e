// SPDX-License-Identifier: BSD-3-Clause
// SimOTA on the CPU: plain C++ over pointers, without torch. First each block of neighbouring
// anchors finds which of them are candidates, and sums their classes. Then each ground-truth box
// (gt) picks its anchors, gt by gt. Last, each anchor that several gts picked finds the gt of least
// cost, anchor by anchor. All are independent pieces of work, so the result does not depend on the
// threads. Costs are computed where they are used; most gts need those of a few dozen anchors.
// Memory: O(anchors + gts * candidate_topk) for each image.
#pragma once

#include <algorithm>
#include <vector>

#include "dense_points.h"
#include "simota.loops.h"

namespace fastdet::cpu {

// T is the type of the scores.
template <typename T>
struct SimotaInput {
  using S = Sum<T>;

  const T* scores;      // (B, A, C)
  const Box<S>* boxes;  // (B, A)
  const S* points;      // (A, 2)
  const S* strides;     // (A,)
  LabelledGts<S> gts;
  int64_t num_images, num_anchors;
  int64_t candidate_topk;
  SimotaRule<S> rule;
};

// The points whose stride is finite; the others have no place.
template <typename S>
std::vector<S> placed_points(const S* points, const S* strides, int64_t n) {
  std::vector<S> placed(points, points + 2 * n);
  for (int64_t a = 0; a < n; ++a)
    if (!is_finite(strides[a])) placed[2 * a] = std::numeric_limits<S>::quiet_NaN();
  return placed;
}

// The gts of all images that take part, each image padded to whole vectors.
template <typename S>
class SimotaGtTable {
 public:
  SimotaGtTable(int64_t num_images, int64_t num_gts)
      : padded_(padded_to_lanes(num_gts)),
        boxes_(num_images * padded_),
        x_(num_images * padded_, std::numeric_limits<S>::quiet_NaN()),
        y_(x_) {}

  void set(int64_t image, int64_t g, const Box<S>& box) {
    const auto gt = SimotaGt<S>::of(box);
    const int64_t i = image * padded_ + g;
    boxes_.set(i, box);
    x_[i] = gt.x;
    y_[i] = gt.y;
  }

  SimotaGts<S> of(int64_t image) const {
    const int64_t first = image * padded_;
    return {boxes_.from(first), x_.data() + first, y_.data() + first, padded_};
  }

 private:
  int64_t padded_;
  BoxTable<S> boxes_;
  std::vector<S> x_, y_;
};

template <typename T, typename Parallel>
class SimotaAssigner {
 public:
  using S = Sum<T>;

  SimotaAssigner(const SimotaInput<T>& in, int64_t* index, S* iou, const Parallel& parallel)
      : in_(in),
        points_(placed_points(in.points, in.strides, in.num_anchors).data(), in.num_anchors),
        num_blocks_((in.num_anchors + kPointBlock - 1) / kPointBlock),
        strides_(num_blocks_ * kPointBlock),
        largest_stride_(num_blocks_),
        gts_(in.num_images, in.gts.num_gts),
        sums_(in.num_images * in.num_anchors),
        boxes_(in.num_images * num_blocks_ * kPointBlock),
        hulls_(in.num_images * padded_to_lanes(num_blocks_)),
        picks_(in.num_images * in.gts.num_gts * in.candidate_topk),
        num_picks_(in.num_images * in.gts.num_gts),
        index_(index),
        iou_(iou),
        parallel_(parallel) {
    for (int64_t a = 0; a < in.num_anchors; ++a) {
      strides_[a] = in.strides[a];
      S& largest = largest_stride_[a / kPointBlock];
      if (is_finite(in.strides[a])) largest = max_of(largest, in.strides[a]);
    }
    for (int64_t row = 0; row < in.num_images * in.gts.num_gts; ++row)
      if (in_.gts.takes_part(row))
        gts_.set(row / in.gts.num_gts, row % in.gts.num_gts, in.gts.boxes[row]);
  }

  void run() {
    parallel_(in_.num_images * num_blocks_, kGrainBlocks, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) find_candidates(i / num_blocks_, i % num_blocks_);
    });
    parallel_(in_.num_images * in_.gts.num_gts, kGrainGts, [&](int64_t begin, int64_t end) {
      Work work(in_);
      for (int64_t row = begin; row < end; ++row)
        if (in_.gts.takes_part(row)) pick(row, work);
    });
    parallel_(in_.num_images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) collect(image);
    });
    parallel_(in_.num_images * in_.num_anchors, kGrainAnchors, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> around(padded_to_lanes(in_.gts.num_gts));
      for (int64_t i = begin; i < end; ++i) settle(i, around.data());
    });
  }

 private:
  static constexpr int64_t kNone = -1, kSeveral = -2;  // gts that picked an anchor
  static constexpr int64_t kGrainBlocks = 4, kGrainGts = 4, kGrainAnchors = 1024;

  // The costs of a gt's candidates, and its largest IoUs.
  struct Work {
    std::vector<int32_t> central, others;
    std::vector<S> cost, largest;

    explicit Work(const SimotaInput<T>& in)
        : central(in.num_anchors),
          others(in.num_anchors),
          cost(in.num_anchors),
          largest(in.candidate_topk) {}
  };

  StridedPoints<S> points() const {
    return {points_.planes(), strides_.data(), largest_stride_.data()};
  }

  Predictions<T> predictions(int64_t image) const {
    const int64_t first = image * in_.num_anchors;
    return {in_.scores + first * in_.gts.num_classes, in_.gts.num_classes, 1, in_.boxes + first};
  }

  BlockedBoxes<S> blocked_boxes(int64_t image) const {
    return {boxes_.from(image * num_blocks_ * kPointBlock),
            hulls_.from(image * padded_to_lanes(num_blocks_)), num_blocks_};
  }

  // Sums the classes of the candidates of a block, and sets their boxes. The sum of any other
  // anchor is NaN, and its box touches nothing.
  void find_candidates(int64_t image, int64_t block) {
    constexpr S kInf = std::numeric_limits<S>::infinity();
    const uint64_t covered = current_loops<SimotaLoops<S>>().covered_points(
        points(), block, gts_.of(image), in_.rule.radius);
    const int64_t first = block * kPointBlock, end = min_of(in_.num_anchors, first + kPointBlock);
    Box<S> hull = {kInf, kInf, -kInf, -kInf};
    for (int64_t a = first; a < end; ++a) {
      const int64_t i = image * in_.num_anchors + a;
      sums_[i] = std::numeric_limits<S>::quiet_NaN();
      if (!(covered >> (a - first) & 1) || !is_finite(in_.boxes[i])) continue;
      sums_[i] = current_loops<SimotaScoreLoops<T>>().sum_classes(
          in_.scores + i * in_.gts.num_classes, in_.gts.num_classes);
      if (sums_[i] != sums_[i]) continue;
      boxes_.set(image * num_blocks_ * kPointBlock + a, in_.boxes[i]);
      hull = enclosing(hull, in_.boxes[i]);
    }
    hulls_.set(image * padded_to_lanes(num_blocks_) + block, hull);
  }

  bool is_candidate(int64_t image, int64_t anchor) const {
    const S sum = sums_[image * in_.num_anchors + anchor];
    return sum == sum;
  }

  void pick(int64_t row, Work& work) {
    const int64_t image = row / in_.gts.num_gts;
    const Box<S>& gt = in_.gts.boxes[row];
    const int64_t num_largest = current_loops<SimotaLoops<S>>().largest_ious(
        blocked_boxes(image), gt, in_.candidate_topk, work.largest.data());
    const int64_t wanted = simota_picks(work.largest.data(), num_largest);
    int32_t* const central = work.central.data();
    const int64_t found = current_loops<SimotaLoops<S>>().centre_points(
        points(), SimotaGt<S>::of(gt), in_.rule.radius, central);
    const int64_t n = std::remove_if(central, central + found,
                                     [&](int32_t a) { return !is_candidate(image, a); }) -
                      central;
    num_picks_[row] = add_cheapest(row, central, n, wanted, work);
    if (num_picks_[row] == wanted) return;
    // Too few in the gt and near its centre: the other candidates of the image come next.
    int32_t* next = work.others.data();
    for (int64_t a = 0, k = 0; a < in_.num_anchors; ++a) {
      if (k < n && central[k] == a)
        ++k;
      else if (is_candidate(image, a))
        *next++ = static_cast<int32_t>(a);
    }
    num_picks_[row] += add_cheapest(row, work.others.data(), next - work.others.data(),
                                    wanted - num_picks_[row], work);
  }

  // Appends the `wanted` cheapest of n anchors to the gt's picks; of equal ones the lowest. Returns
  // how many there are.
  int64_t add_cheapest(int64_t row, const int32_t* anchors, int64_t n, int64_t wanted, Work& work) {
    const int64_t image = row / in_.gts.num_gts;
    S* const cost = work.cost.data();
    current_loops<SimotaScoreLoops<T>>().costs(
        predictions(image), sums_.data() + image * in_.num_anchors, anchors, n, in_.gts.boxes[row],
        in_.gts.labels[row], in_.rule, cost);
    Pick* const picks = picks_.data() + row * in_.candidate_topk + num_picks_[row];
    int64_t size = 0;
    S most = std::numeric_limits<S>::infinity();
    for (int64_t i = 0; i < n; ++i) {
      if (!(cost[i] < most)) continue;
      int64_t place = size < wanted ? size++ : wanted - 1;
      for (; place > 0 && picks[place - 1].cost > cost[i]; --place) picks[place] = picks[place - 1];
      picks[place] = {cost[i], anchors[i]};
      if (size == wanted) most = picks[size - 1].cost;
    }
    return size;
  }

  // The gt of each anchor that one gt picked.
  void collect(int64_t image) {
    int64_t* const index = index_ + image * in_.num_anchors;
    std::fill_n(index, in_.num_anchors, kNone);
    for (int64_t g = 0; g < in_.gts.num_gts; ++g) {
      const int64_t row = image * in_.gts.num_gts + g;
      for (int64_t k = 0; k < num_picks_[row]; ++k) {
        int64_t& gt = index[picks_[row * in_.candidate_topk + k].anchor];
        gt = gt == kNone ? g : kSeveral;
      }
    }
  }

  void settle(int64_t i, int32_t* around) {
    const int64_t image = i / in_.num_anchors;
    if (index_[i] == kSeveral) index_[i] = cheapest_gt(image, i % in_.num_anchors, around);
    iou_[i] = index_[i] == kNone ? S(0) : overlap(i, image * in_.gts.num_gts + index_[i]);
  }

  S overlap(int64_t i, int64_t row) const {
    const Box<S>&box = in_.boxes[i], &gt = in_.gts.boxes[row];
    return fastdet::iou(box, area(box), gt, area(gt));
  }

  // The gt of least cost for an anchor (of equal ones the lowest row): among those in which it is
  // central, or else among all.
  int64_t cheapest_gt(int64_t image, int64_t anchor, int32_t* around) const {
    const S x = in_.points[2 * anchor], y = in_.points[2 * anchor + 1];
    const S reach = in_.rule.radius * in_.strides[anchor];
    const int64_t first = image * in_.gts.num_gts;
    const int64_t n = current_loops<PointLoops<S>>().boxes_around(
        gts_.of(image).boxes, padded_to_lanes(in_.gts.num_gts), x, y, around);
    int64_t best = kNone;
    S least = std::numeric_limits<S>::infinity();
    const auto offer = [&](int64_t g) {
      const int64_t i = image * in_.num_anchors + anchor, row = first + g;
      const S score = predictions(image).score(anchor, in_.gts.labels[row]);
      const S cost = simota_cost(sums_[i], score, overlap(i, row), in_.rule);
      if (!(cost < least)) return;
      least = cost;
      best = g;
    };
    for (int64_t k = 0; k < n; ++k)
      if (SimotaGt<S>::of(in_.gts.boxes[first + around[k]]).is_centred_at(x, y, reach))
        offer(around[k]);
    if (best != kNone) return best;
    for (int64_t g = 0; g < in_.gts.num_gts; ++g)
      if (in_.gts.takes_part(first + g)) offer(g);
    return best;
  }

  struct Pick {
    S cost;
    int32_t anchor;
  };

  const SimotaInput<T>& in_;
  DensePoints<S> points_;
  int64_t num_blocks_;
  std::vector<S> strides_, largest_stride_;
  SimotaGtTable<S> gts_;
  std::vector<S> sums_;        // (B, A)
  BoxTable<S> boxes_, hulls_;  // of each image's blocks
  std::vector<Pick> picks_;    // (B, G, candidate_topk)
  std::vector<int64_t> num_picks_;
  int64_t* index_;
  S* iou_;
  const Parallel& parallel_;
};

// Writes index and iou (B, A). `parallel(n, grain, body)` runs body(begin, end) for pieces of
// [0, n).
template <typename T, typename Parallel>
void assign_simota_batch(const SimotaInput<T>& in, int64_t* index, Sum<T>* iou,
                         const Parallel& parallel) {
  SimotaAssigner<T, Parallel>(in, index, iou, parallel).run();
}

}  // namespace fastdet::cpu
