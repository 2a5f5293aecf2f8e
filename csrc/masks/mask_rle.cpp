// SPDX-License-Identifier: BSD-3-Clause
// Finds the edges of masks: the pixels, counted column by column, at which a mask changes. COCO's
// run lengths are the distances between edges. For pasted masks no pixel is written. A column is
// evaluated once for each row of its mask; if it crosses the threshold between two rows, bisection
// finds the pixel. For given masks each byte is read once, row by row.
//
// The lower bound for the benchmark (100 masks of 28 x 28 in 800 x 1216) is about 170 columns for
// each mask with 30 values each, half a million in all. For given masks it is to read them once, 97
// MB there. Workspace: the edges, for a while twice, and 4 bytes more for each edge of a given
// mask.
#include <algorithm>
#include <iterator>
#include <numeric>
#include <tuple>
#include <vector>

#include "../geometry/threshold.h"
#include "../host/parallel.h"
#include "contract.h"
#include "mask_rle.loops.h"
#include "paste_masks.loops.h"
#include "tensors.h"

namespace fastdet::cpu {

namespace {

using Edges = std::vector<int64_t>;

// Finds the edges of one mask, column by column of its image.
template <typename S>
class ColumnWalker {
 public:
  ColumnWalker(const PastedMasks<S>& masks, int64_t n, S threshold)
      : rows_(masks.rows(n)),
        columns_(masks.columns(n)),
        threshold_(threshold),
        image_height_(masks.image_height),
        pixels_(image_height_ * masks.image_width),
        stride_(masks.height + 3),
        bordered_((masks.width + 3) * stride_),
        values_(stride_) {
    const BorderedMask<S> mask = masks.mask(n);
    for (int64_t j = 1; j <= masks.width; ++j)
      for (int64_t i = 1; i <= masks.height; ++i) bordered_[j * stride_ + i] = mask.at(i, j);
    for (int64_t i = 0, begin = rows_.begin; i < masks.height + 2; ++i) {
      const int64_t end = end_of_row(rows_, i);
      begin_.push_back(begin);
      first_.push_back(begin < end ? paste_tap(rows_, begin).fraction : S(0));
      last_.push_back(begin < end ? paste_tap(rows_, end - 1).fraction : S(0));
      begin = end;
    }
    begin_.push_back(rows_.end);
    first_on_.resize(begin_.size());
    last_on_.resize(begin_.size());
  }

  Edges edges() {
    Edges edges;
    if (rows_.begin >= rows_.end) return edges;
    bool on = false;
    for (int64_t x = columns_.begin; x < columns_.end; ++x) {
      on = add_crossings(x, on, edges);
      const bool goes_on = runs_on(rows_, image_height_) && x + 1 < columns_.end;
      if (!on || goes_on) continue;
      // A run that reaches the end of the image has no edge there.
      const int64_t end = x * image_height_ + rows_.end;
      if (end < pixels_) edges.push_back(end);
      on = false;
    }
    return edges;
  }

 private:
  // Adds the pixels at which column x crosses the threshold. `on`: whether the pixel before is
  // above it. Returns whether the last pixel is above it.
  bool add_crossings(int64_t x, bool on, Edges& edges) {
    const auto& loops = current_loops<PasteLoops<S>>();
    const int64_t column = x * image_height_, n = stride_ - 1;
    const PasteTap<S> tap = paste_tap(columns_, x);
    const S* const left = bordered_.data() + tap.index * stride_;
    loops.paste_row(left, left + stride_, tap.fraction, stride_, values_.data());
    loops.paste_column_above(values_.data(), first_.data(), threshold_, n, first_on_.data());
    loops.paste_column_above(values_.data(), last_.data(), threshold_, n, last_on_.data());
    for (int64_t i = 0; i < n; ++i) {
      const int64_t begin = begin_[i], end = begin_[i + 1];
      if (begin == end) continue;
      if (first_on_[i] != on) edges.push_back(column + begin), on = !on;
      if (last_on_[i] == on) continue;
      on = !on;
      edges.push_back(column + first_pixel(begin + 1, end - 1, [&](int64_t y) {
                        const S fraction = paste_tap(rows_, y).fraction;
                        return (between(values_[i], values_[i + 1], fraction) > threshold_) == on;
                      }));
    }
    return on;
  }

  PasteAxis<S> rows_, columns_;
  S threshold_;
  int64_t image_height_, pixels_;
  int64_t stride_;           // the rows of the mask with its border, and one more row of zeros
  std::vector<S> bordered_;  // column by column
  std::vector<S> values_;    // the rows of the mask at one column of the image
  // Pixels [begin[i], begin[i + 1]) lie between rows i and i + 1. For the first and the last of
  // them: the fraction of the way to row i + 1, and whether they are above the threshold.
  std::vector<int64_t> begin_;
  std::vector<S> first_, last_;
  std::vector<uint8_t> first_on_, last_on_;
};

// The edges of a mask of zeros and ones. The mask is read once, row by row, and each row is
// compared with the row above, which is still in the cache. The changes come row by row and are
// then put in the order of the columns, by counting.
Edges edges_of(const uint8_t* mask, int64_t height, int64_t width) {
  if (height == 0 || width == 0) return {};
  const auto find_changes = current_loops<MaskEdgeLoops>().find_changes;
  std::vector<int32_t> places;               // x of the changes
  std::vector<int64_t> row_end;              // of row y: where its changes end in places
  std::vector<int64_t> begin(width, 0);      // of column x: where its edges begin
  std::vector<uint8_t> before_first(width);  // a column goes on from the end of the column before
  std::copy_n(mask + (height - 1) * width, width - 1, before_first.begin() + 1);
  int64_t count = 0;
  for (int64_t y = 0; y < height; ++y) {
    if (std::ssize(places) < count + width) places.resize(2 * (count + width));
    const uint8_t* const row = mask + y * width;
    const uint8_t* const above = y == 0 ? before_first.data() : row - width;
    const int32_t* const place = places.data() + count;
    const int64_t changes = find_changes(above, row, width, places.data() + count);
    for (int64_t k = 0; k < changes; ++k) ++begin[place[k]];
    row_end.push_back(count += changes);
  }
  std::exclusive_scan(begin.begin(), begin.end(), begin.begin(), int64_t(0));
  Edges edges(count);
  for (int64_t y = 0, k = 0; y < height; ++y)
    for (; k < row_end[y]; ++k) edges[begin[places[k]]++] = places[k] * height + y;
  return edges;
}

// Joins the edges of all masks, find(n) of mask n, in one tensor.
template <typename Find>
std::tuple<Tensor, Tensor> all_edges(const Tensor& masks, const Find& find) {
  const int64_t count = masks.size(0);
  std::vector<Edges> of_mask(count);
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) of_mask[n] = find(n);
  });
  const Tensor offsets = empty(masks, {count + 1}, kInt64);
  int64_t* const offset = mutable_data<int64_t>(offsets);
  offset[0] = 0;
  for (int64_t n = 0; n < count; ++n)
    offset[n + 1] = offset[n] + static_cast<int64_t>(of_mask[n].size());
  const Tensor edges = empty(masks, {offset[count]}, kInt64);
  for (int64_t n = 0; n < count; ++n)
    std::copy(of_mask[n].begin(), of_mask[n].end(), mutable_data<int64_t>(edges) + offset[n]);
  return {edges, offsets};
}

}  // namespace

std::tuple<Tensor, Tensor> pasted_mask_edges(const Tensor& masks, const Tensor& boxes,
                                             int64_t height, int64_t width, double threshold) {
  check_paste_masks("pasted_mask_edges", masks, boxes, height, width);
  const Tensor values = box_input(masks, box_dtype(masks));
  const std::vector<PasteBox> ranges = paste_boxes(boxes, masks.size(2));
  return dispatch_box(box_dtype(masks), [&]<typename S>() {
    const auto pasted = pasted_masks<S>(values, ranges.data(), height, width);
    const S bound = round_down<S>(threshold);
    return all_edges(masks, [&](int64_t n) { return ColumnWalker<S>(pasted, n, bound).edges(); });
  });
}

std::tuple<Tensor, Tensor> mask_edges(const Tensor& masks) {
  check_mask_edges("mask_edges", masks);
  const Tensor masks_in = torch::stable::contiguous(masks);
  const int64_t height = masks.size(1), width = masks.size(2);
  return all_edges(masks, [&](int64_t n) {
    return edges_of(data<uint8_t>(masks_in) + n * height * width, height, width);
  });
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("pasted_mask_edges", TORCH_BOX(&pasted_mask_edges));
  m.impl("mask_edges", TORCH_BOX(&mask_edges));
}

}  // namespace fastdet::cpu
