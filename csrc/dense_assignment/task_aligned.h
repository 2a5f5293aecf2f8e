// SPDX-License-Identifier: BSD-3-Clause
// Task-aligned assignment on the CPU: plain C++ over pointers, without torch. First each
// ground-truth box (gt) picks its best candidates, gt by gt. Then each anchor that several gts
// picked finds the gt that it overlaps most, anchor by anchor: it computes those few overlaps
// again, with the same bits. Both are independent pieces of work, so the result does not depend on
// the threads. Memory: O(anchors + gts * topk) for each image.
#pragma once

#include <algorithm>
#include <vector>

#include "dense_points.h"
#include "task_aligned.loops.h"

namespace fastdet::cpu {

// T is the type of the scores.
template <typename T>
struct TaskAlignedInput {
  using S = Sum<T>;

  const T* scores;  // (B, A, C)
  int64_t image_stride, anchor_stride, class_stride;
  const Box<S>* boxes;  // (B, A)
  const S* points;      // (A, 2)
  LabelledGts<S> gts;
  int64_t num_images, num_anchors;
  int64_t topk;
  TaskAlignment<S> rule;
};

template <typename T, typename Parallel>
class TaskAlignedAssigner {
 public:
  using S = Sum<T>;

  TaskAlignedAssigner(const TaskAlignedInput<T>& in, int64_t* index, S* metric,
                      const Parallel& parallel)
      : in_(in),
        points_(in.points, in.num_anchors),
        row_stride_(padded_to_lanes(in.gts.num_gts)),
        candidate_boxes_(in.num_images * row_stride_),
        picks_(in.num_images * in.gts.num_gts * in.topk),
        num_picks_(in.num_images * in.gts.num_gts),
        overlap_(in.num_images * in.num_anchors),
        index_(index),
        metric_(metric),
        parallel_(parallel) {}

  void run() {
    const int64_t num_rows = in_.num_images * in_.gts.num_gts;
    for (int64_t row = 0; row < num_rows; ++row)
      if (in_.gts.takes_part(row))
        candidate_boxes_.set(row / in_.gts.num_gts * row_stride_ + row % in_.gts.num_gts,
                             candidate_box(in_.gts.boxes[row], in_.rule.min_side));
    parallel_(num_rows, kGrainGts, [&](int64_t begin, int64_t end) {
      Work work(in_.num_anchors);
      for (int64_t row = begin; row < end; ++row)
        if (in_.gts.takes_part(row)) pick(row, work);
    });
    parallel_(in_.num_images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) collect(image);
    });
    parallel_(in_.num_images * in_.num_anchors, kGrainAnchors, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> around(row_stride_);
      for (int64_t i = begin; i < end; ++i)
        if (index_[i] == kSeveral) settle(i, around.data());
    });
    parallel_(in_.num_images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) normalise(image);
    });
  }

 private:
  struct Pick {
    S alignment, overlap;
    int32_t anchor;
  };

  // The candidates of a gt.
  struct Work {
    std::vector<int32_t> anchors;
    std::vector<S> alignment, overlap;

    explicit Work(int64_t n) : anchors(n), alignment(n), overlap(n) {}
  };

  static constexpr int64_t kNone = -1, kSeveral = -2;  // gts that picked an anchor
  static constexpr int64_t kGrainGts = 4, kGrainAnchors = 1024;

  Predictions<T> predictions(int64_t image) const {
    return {in_.scores + image * in_.image_stride, in_.anchor_stride, in_.class_stride,
            in_.boxes + image * in_.num_anchors};
  }

  void pick(int64_t row, Work& work) {
    const Box<S>& gt = in_.gts.boxes[row];
    const int64_t n = current_loops<PointLoops<S>>().points_in_box(
        points_.planes(), candidate_box(gt, in_.rule.min_side), work.anchors.data());
    current_loops<TaskAlignedLoops<T>>().align(
        predictions(row / in_.gts.num_gts), work.anchors.data(), n, gt, in_.gts.labels[row],
        in_.rule, work.alignment.data(), work.overlap.data());
    num_picks_[row] = keep_best(work, n, picks_.data() + row * in_.topk);
  }

  // Sorts the best candidates into `picks`; equal ones stay in the order of the anchors.
  int64_t keep_best(const Work& work, int64_t n, Pick* picks) const {
    int64_t size = 0;
    S least = S(0);
    for (int64_t i = 0; i < n; ++i) {
      const S alignment = work.alignment[i];
      if (!(alignment > least)) continue;
      int64_t place = size < in_.topk ? size++ : in_.topk - 1;
      for (; place > 0 && picks[place - 1].alignment < alignment; --place)
        picks[place] = picks[place - 1];
      picks[place] = {alignment, work.overlap[i], work.anchors[i]};
      if (size == in_.topk) least = picks[size - 1].alignment;
    }
    return size;
  }

  // The gt of each anchor that one gt picked. `metric_` holds the alignment until normalise().
  void collect(int64_t image) {
    const int64_t first = image * in_.num_anchors;
    std::fill_n(index_ + first, in_.num_anchors, kNone);
    std::fill_n(metric_ + first, in_.num_anchors, S(0));
    for (int64_t g = 0; g < in_.gts.num_gts; ++g) {
      const int64_t row = image * in_.gts.num_gts + g;
      for (int64_t k = 0; k < num_picks_[row]; ++k) {
        const Pick& pick = picks_[row * in_.topk + k];
        const int64_t i = first + pick.anchor;
        index_[i] = index_[i] == kNone ? g : kSeveral;
        metric_[i] = pick.alignment;
        overlap_[i] = pick.overlap;
      }
    }
  }

  // Gives an anchor to the gt that it overlaps most, among all of which it is a candidate.
  void settle(int64_t i, int32_t* around) {
    const int64_t image = i / in_.num_anchors;
    const S* const point = in_.points + i % in_.num_anchors * 2;
    const int64_t n = current_loops<PointLoops<S>>().boxes_around(
        candidate_boxes_.from(image * row_stride_), row_stride_, point[0], point[1], around);
    S most = S(-1);
    for (int64_t k = 0; k < n; ++k) {
      const auto gt =
          iou_box<IouKind::kComplete>(in_.gts.boxes[image * in_.gts.num_gts + around[k]]);
      const S overlap = overlap_of(gt, in_.boxes[i]);
      if (!(overlap > most)) continue;
      most = overlap;
      index_[i] = around[k];
    }
    overlap_[i] = most;
    const S score = predictions(image).score(i % in_.num_anchors,
                                             in_.gts.labels[image * in_.gts.num_gts + index_[i]]);
    metric_[i] = alignment_of(score, most, in_.rule);
  }

  void normalise(int64_t image) {
    std::vector<S> alignment(in_.gts.num_gts), overlap(in_.gts.num_gts);  // the largest of each gt
    const int64_t first = image * in_.num_anchors;
    for (int64_t i = first; i < first + in_.num_anchors; ++i) {
      const int64_t g = index_[i];
      if (g < 0) continue;
      alignment[g] = max_of(alignment[g], metric_[i]);
      overlap[g] = max_of(overlap[g], overlap_[i]);
    }
    for (int64_t i = first; i < first + in_.num_anchors; ++i) {
      const int64_t g = index_[i];
      if (g >= 0) metric_[i] = normalised(metric_[i], alignment[g], overlap[g]);
    }
  }

  const TaskAlignedInput<T>& in_;
  DensePoints<S> points_;
  int64_t row_stride_;  // of an image in candidate_boxes_
  BoxTable<S> candidate_boxes_;
  std::vector<Pick> picks_;  // (B, G, topk)
  std::vector<int64_t> num_picks_;
  std::vector<S> overlap_;  // (B, A)
  int64_t* index_;
  S* metric_;
  const Parallel& parallel_;
};

// Writes index and metric (B, A). `parallel(n, grain, body)` runs body(begin, end) for pieces of
// [0, n).
template <typename T, typename Parallel>
void assign_task_aligned_batch(const TaskAlignedInput<T>& in, int64_t* index, Sum<T>* metric,
                               const Parallel& parallel) {
  TaskAlignedAssigner<T, Parallel>(in, index, metric, parallel).run();
}

}  // namespace fastdet::cpu
