// SPDX-License-Identifier: BSD-3-Clause
// Weighted boxes fusion over raw pointers, plain C++. The boxes of a label are visited by falling
// weighted score (ties: the lower index first). A box joins the fused box that it overlaps most, if
// their IoU is above the threshold, and moves it: a fused box is the mean of its members, weighted
// by their scores. Else it begins a fused box of its own.
//
// The numbers are those of ensemble-boxes, to the last bit where NumPy >= 2 computes them: a box of
// several members is summed and stored in float32, everything else in float64.
//
// Cost: the sort, and boxes * fused boxes of a label in vectors. Labels run in parallel. Memory
// O(n * models / 64).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../nms/box_groups.h"
#include "../nms/greedy_nms.h"
#include "fusion_rule.h"
#include "weighted_boxes_fusion.loops.h"

namespace fastdet::cpu {

template <typename T>
struct FusionInput {
  const Box<T>* boxes;
  const T* scores;
  const int64_t *labels, *models;
  int64_t n;
};

struct FusedBox {
  Box<double> box;
  double score;
  int64_t label, first;  // the row of its first member

  // By falling score.
  bool operator<(const FusedBox& other) const {
    return score != other.score ? score > other.score : first < other.first;
  }
};

// The fused boxes of one label.
class FusedBoxes {
 public:
  FusedBoxes(const FusionRule& rule, int64_t most)
      : rule_(rule), num_words_((rule.weights.size() + 63) / 64), store_(most) {
    static_assert(kFusionOverread <= kNmsOverread);
  }

  void add(const Box<double>& box, double score, int64_t model, int64_t row) {
    const int64_t found =
        loops_.find_best(store_.planes(), size(), box, area(box), rule_.iou_threshold);
    if (found < 0) {
      put(store_.planes(), size(), box, area(box));
      members_.push_back({.row = row, .highest = score});
      models_.resize(models_.size() + num_words_);
    }
    const int64_t i = found < 0 ? size() - 1 : found;
    Members& own = members_[i];
    own.join(box, score, rule_.weights[model]);
    models_[i * num_words_ + model / 64] |= uint64_t(1) << model % 64;
    if (found < 0 || !(own.score > 0)) return;
    const Box<double> mean = own.mean();
    put(store_.planes(), i, mean, area(mean));
  }

  int64_t size() const { return static_cast<int64_t>(members_.size()); }

  FusedBox fused(int64_t i, int64_t label) const {
    const BoxPlanes<double> p = store_.planes();
    return {{p.x1[i], p.y1[i], p.x2[i], p.y2[i]}, score(i), label, members_[i].row};
  }

 private:
  struct Members {
    int64_t row;
    double highest;
    std::array<float, 4> sum = {};
    double score = 0, weight = 0;  // sums
    int64_t count = 0;

    void join(const Box<double>& box, double own_score, double own_weight) {
      const auto plus = [=](float total, double x) {
        return static_cast<float>(total + own_score * x);
      };
      sum = {plus(sum[0], box.x1), plus(sum[1], box.y1), plus(sum[2], box.x2),
             plus(sum[3], box.y2)};
      score += own_score;
      weight += own_weight;
      ++count;
    }

    Box<double> mean() const {
      const auto by_score = [this](float total) { return stored(total / score); };
      return {by_score(sum[0]), by_score(sum[1]), by_score(sum[2]), by_score(sum[3])};
    }

    // What is kept of a number: float32, unless there is one member.
    double stored(double x) const { return count > 1 ? static_cast<float>(x) : x; }
  };

  // The sum of the weights of the models that have a member in the fused box, or that have none.
  double weight_of_models(int64_t i, bool with_member) const {
    double sum = 0;
    for (size_t m = 0; m < rule_.weights.size(); ++m)
      if ((models_[i * num_words_ + m / 64] >> m % 64 & 1) == with_member) sum += rule_.weights[m];
    return sum;
  }

  double score(int64_t i) const {
    const Members& own = members_[i];
    const auto num_models = static_cast<int64_t>(rule_.weights.size());
    const double count = static_cast<double>(own.count), weight = own.stored(own.weight);
    double all = 0;
    for (const double w : rule_.weights) all += w;
    const double mean = own.stored(own.score / count);
    switch (rule_.conf_type) {
      case ConfType::kMax:
        return own.stored(own.highest) /
               *std::max_element(rule_.weights.begin(), rule_.weights.end());
      case ConfType::kBoxAndModelAvg:
        return mean * count / weight * weight_of_models(i, true) / all;
      case ConfType::kAbsentModelAwareAvg:
        return mean * count / (weight + weight_of_models(i, false));
      default:
        break;
    }
    if (rule_.allows_overflow) return mean * count / all;
    return mean * static_cast<double>(std::min(num_models, own.count)) / all;
  }

  const FusionRule& rule_;
  const FusionLoops& loops_ = current_loops<FusionLoops>();
  int64_t num_words_;
  BoxStore<double> store_;
  std::vector<Members> members_;
  std::vector<uint64_t> models_;  // a bit for each model, num_words_ for each fused box
};

// The rows that take part, by falling weighted score.
template <typename T>
std::vector<Ranked<double>> fusion_order(const FusionInput<T>& in, const FusionRule& rule) {
  std::vector<Ranked<double>> rows;
  for (int64_t i = 0; i < in.n; ++i) {
    const Box<T>& box = in.boxes[i];
    const bool solid = is_finite(box) && box.x1 < box.x2 && box.y1 < box.y2;
    if (solid && is_finite(in.scores[i]) && in.scores[i] >= rule.score_threshold)
      rows.emplace_back(in.scores[i] * rule.weights[in.models[i]], i);
  }
  if (!rows.empty()) radix_sort(rows);
  return rows;
}

// The fused boxes of all labels by falling score; ties: the one whose first member has the lower
// index.
template <typename T, typename Parallel>
std::vector<FusedBox> fuse_boxes(const FusionInput<T>& in, const FusionRule& rule,
                                 const Parallel& parallel) {
  const std::vector<Ranked<double>> order = fusion_order(in, rule);
  const auto n = static_cast<int64_t>(order.size());
  const BoxGroups<double> groups(order.data(), n, in.labels);
  std::vector<std::vector<FusedBox>> by_label(groups.size());
  for_each_group(groups, n, parallel, [&](int64_t g) {
    FusedBoxes boxes(rule, groups.size(g));
    const Ranked<double>* const members = groups.members.data() + groups.begin[g];
    for (int64_t j = 0; j < groups.size(g); ++j) {
      const int64_t row = members[j].index, model = in.models[row];
      const Box<T>& box = in.boxes[row];
      boxes.add({double(box.x1), double(box.y1), double(box.x2), double(box.y2)},
                in.scores[row] * rule.weights[model], model, row);
    }
    for (int64_t i = 0; i < boxes.size(); ++i)
      by_label[g].push_back(boxes.fused(i, in.labels[members[0].index]));
  });
  std::vector<FusedBox> all;
  for (const auto& boxes : by_label) all.insert(all.end(), boxes.begin(), boxes.end());
  std::sort(all.begin(), all.end());
  return all;
}

}  // namespace fastdet::cpu
