// SPDX-License-Identifier: BSD-3-Clause
// The last step of every detector, over raw pointers: the candidates of an image, the suppression
// among equal labels, and the fixed number of output rows. Plain C++, no torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../nms/greedy_nms.h"
#include "detection_rows.h"

namespace fastdet::cpu {

// Candidates of an image or of a part of it. `ranks` are the scores or logits that give the order
// of the suppression.
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

// Fills the `rows` output rows of image b with its best surviving candidates, of equal ranks the
// first ones. Their scores are score(rank). Rows without a candidate are 0.
template <typename S, typename Score, typename Parallel>
void write_kept(int64_t b, const Candidates<S>& all, S iou_threshold, int64_t rows,
                const Score& score, const DetectionRows<S>& out, const Parallel& parallel) {
  const int64_t n = static_cast<int64_t>(all.boxes.size()), most = std::min(n, rows);
  std::vector<int64_t> keep(most);
  const NmsInput<S> in = {all.boxes.data(), all.ranks.data(), all.labels.data(), n};
  const int64_t kept = greedy_nms(in, iou_threshold, most, keep.data(), parallel);
  for (int64_t i = 0, row = b * rows; i < rows; ++i, ++row) {
    out.boxes[row] = i < kept ? all.boxes[keep[i]] : Box<S>{};
    out.scores[row] = i < kept ? score(all.ranks[keep[i]]) : S(0);
    out.labels[row] = i < kept ? all.labels[keep[i]] : 0;
  }
  out.counts[b] = kept;
}

// Calls body(b) for each image, in parallel. Parallel loops do not nest, so with a single image the
// threads are left to its suppression.
template <typename Body, typename Parallel>
void for_each_image(int64_t num_images, const Body& body, const Parallel& parallel) {
  if (num_images == 1) return body(0);
  parallel(num_images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) body(b);
  });
}

}  // namespace fastdet::cpu
