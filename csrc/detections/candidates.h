// SPDX-License-Identifier: BSD-3-Clause
// The end of every detector, over raw pointers: candidates of an image, suppression among equal
// labels, and the rows of fixed number that it fills. Plain C++, no torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "detection_rows.h"
#include "../nms/greedy_nms.h"

namespace fastdet::cpu {

// Candidates of an image or of a part of it. `ranks` is what they are suppressed by: scores, or
// logits.
template <typename S>
struct Candidates {
  std::vector<Box<S>> boxes;
  std::vector<S> ranks;
  std::vector<int64_t> labels;

  void append(const Box<S>& box, S rank, int64_t label) {
    boxes.push_back(box);
    ranks.push_back(rank);
    labels.push_back(label);
  }

  void append(const Candidates& other) {
    boxes.insert(boxes.end(), other.boxes.begin(), other.boxes.end());
    ranks.insert(ranks.end(), other.ranks.begin(), other.ranks.end());
    labels.insert(labels.end(), other.labels.begin(), other.labels.end());
  }
};

// Fills image b's D rows with the best of its candidates that survive, of equal rank the first
// ones; score(rank) is what is written.
template <typename S, typename Score, typename Parallel>
void write_kept(int64_t b, const Candidates<S>& all, S nms_thresh, int64_t rows, const Score& score,
                const DetectionRows<S>& out, const Parallel& parallel) {
  const int64_t n = static_cast<int64_t>(all.boxes.size()), most = std::min(n, rows);
  std::vector<int64_t> keep(most);
  const NmsInput<S> in = {all.boxes.data(), all.ranks.data(), all.labels.data(), n};
  const int64_t kept = greedy_nms(in, nms_thresh, most, keep.data(), parallel);
  for (int64_t i = 0, row = b * rows; i < rows; ++i, ++row) {
    out.boxes[row] = i < kept ? all.boxes[keep[i]] : Box<S>{};
    out.scores[row] = i < kept ? score(all.ranks[keep[i]]) : S(0);
    out.labels[row] = i < kept ? all.labels[keep[i]] : 0;
  }
  out.counts[b] = kept;
}

// body(b) for each image. Threads do not nest: a single image is left to those of its suppression.
template <typename Body, typename Parallel>
void for_each_image(int64_t num_images, const Body& body, const Parallel& parallel) {
  if (num_images == 1) return body(0);
  parallel(num_images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) body(b);
  });
}

}  // namespace fastdet::cpu
