// SPDX-License-Identifier: BSD-3-Clause
// Selects detections from boxes with a score for each class, over raw pointers: plain C++, no
// torch. The scores are read once, in memory order; all other costs grow with the candidates.
// Memory: O(boxes) if a box has one label, else O(candidates).
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../nms/greedy_nms.h"
#include "../selection/top_logits.h"
#include "../selection/top_logits.loops.h"

namespace fastdet::cpu {

template <typename T>
struct ScoredBoxes {
  const Box<T>* boxes;
  const T* scores;
  int64_t num_boxes, num_classes;
  bool by_class;  // whether scores are (classes, boxes); else (boxes, classes)

  int64_t box(int64_t i) const { return by_class ? i % num_boxes : i / num_classes; }
  int64_t label(int64_t i) const { return by_class ? i / num_boxes : i % num_classes; }
};

template <typename T>
struct MulticlassRule {
  T score_threshold;  // scores are above it; rounded down
  T iou_threshold;    // rounded down
  bool multi_label;   // whether each class above the threshold is a candidate; else only the best
  int64_t max_candidates, max_detections;
};

template <typename T>
struct LabelledBoxes {
  std::vector<Box<T>> boxes;
  std::vector<T> scores;
  std::vector<int64_t> labels;

  void reserve(size_t n) {
    boxes.reserve(n);
    scores.reserve(n);
    labels.reserve(n);
  }

  void append(const Box<T>& box, T score, int64_t label) {
    boxes.push_back(box);
    scores.push_back(score);
    labels.push_back(label);
  }
};

// The pairs of box and class above the threshold: the best max_candidates, in the order (box,
// class).
template <typename T>
LabelledBoxes<T> candidates_of_all_classes(const ScoredBoxes<T>& in,
                                           const MulticlassRule<T>& rule) {
  TopLogits<T> top(rule.max_candidates, rule.score_threshold);
  top.read(in.scores, 0, in.num_boxes * in.num_classes);
  top.trim();
  std::vector<std::pair<int64_t, T>> pairs(top.size());
  for (int64_t j = 0; j < top.size(); ++j)
    pairs[j] = {in.box(top.index(j)) * in.num_classes + in.label(top.index(j)), top.logit(j)};
  if (in.by_class) std::sort(pairs.begin(), pairs.end());
  LabelledBoxes<T> out;
  out.reserve(pairs.size());
  for (const auto& [pair, score] : pairs)
    out.append(in.boxes[pair / in.num_classes], score, pair % in.num_classes);
  return out;
}

// The boxes whose best class (of equal scores the lowest class) is above the threshold: the best
// max_candidates, in the order of the boxes.
template <typename T>
LabelledBoxes<T> candidates_of_best_class(const ScoredBoxes<T>& in, const MulticlassRule<T>& rule) {
  constexpr int64_t kSpan = 4096;
  std::vector<T> best(in.num_boxes, rule.score_threshold), score(kSpan);
  std::vector<int64_t> label(in.num_boxes), index(kSpan);
  const int64_t total = in.num_boxes * in.num_classes;
  for (int64_t begin = 0; begin < total; begin += kSpan) {
    const int64_t found = current_loops<TopLogitsLoops<T>>().find_above(
        in.scores + begin, std::min(kSpan, total - begin), rule.score_threshold, begin,
        score.data(), index.data());
    for (int64_t j = 0; j < found; ++j) {
      const int64_t b = in.box(index[j]);
      if (!(score[j] > best[b])) continue;
      best[b] = score[j];
      label[b] = in.label(index[j]);
    }
  }
  TopLogits<T> top(rule.max_candidates, rule.score_threshold);
  top.read(best.data(), 0, in.num_boxes);
  top.trim();
  LabelledBoxes<T> out;
  out.reserve(top.size());
  for (int64_t j = 0; j < top.size(); ++j)
    out.append(in.boxes[top.index(j)], top.logit(j), label[top.index(j)]);
  return out;
}

// Detections by falling score; of equal scores the lower box first, then the lower class.
template <typename T, typename Parallel>
LabelledBoxes<T> multiclass_nms(const ScoredBoxes<T>& in, const MulticlassRule<T>& rule,
                                const Parallel& parallel) {
  const LabelledBoxes<T> all =
      rule.multi_label ? candidates_of_all_classes(in, rule) : candidates_of_best_class(in, rule);
  const auto n = static_cast<int64_t>(all.boxes.size());
  std::vector<int64_t> keep(std::min(n, rule.max_detections));
  keep.resize(greedy_nms(NmsInput<T>{all.boxes.data(), all.scores.data(), all.labels.data(), n},
                         rule.iou_threshold, static_cast<int64_t>(keep.size()), keep.data(),
                         parallel));
  LabelledBoxes<T> out;
  out.reserve(keep.size());
  for (const int64_t j : keep) out.append(all.boxes[j], all.scores[j], all.labels[j]);
  return out;
}

}  // namespace fastdet::cpu
