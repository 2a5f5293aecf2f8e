// SPDX-License-Identifier: BSD-3-Clause
// Resizes masks to their boxes in whole images, as probabilities or compared with a threshold at
// once. Each row of a mask is resized along x once. A row of the image is then one pass over two
// such rows, without a gather.
//
// The lower bound for the benchmark (100 masks of 28 x 28 in 800 x 1216) is to write 97 MB, most of
// them zeros. Inside the boxes there are about 3 million pixels with three operations each.
// Workspace: two resized rows for each thread.
#include <algorithm>
#include <vector>

#include "../geometry/threshold.h"
#include "../host/huge_pages.h"
#include "../host/parallel.h"
#include "contract.h"
#include "paste_masks.loops.h"
#include "tensors.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kBlockRows = 64;  // rows of an image that a thread takes at a time

// One mask, ready to be pasted row by row.
template <typename S>
class RowPaster {
 public:
  RowPaster(const PastedMasks<S>& masks, int64_t n)
      : rows(masks.rows(n)),
        columns(masks.columns(n)),
        mask_(masks.mask(n)),
        bordered_(masks.width + 3) {
    for (int64_t x = columns.begin; x < columns.end; ++x) {
      const PasteTap<S> tap = paste_tap(columns, x);
      index_.push_back(static_cast<int32_t>(tap.index));
      fraction_.push_back(tap.fraction);
    }
    above_.resize(index_.size());
    below_.resize(index_.size());
  }

  // Calls use(above, below, fraction), from which the visible pixels of row y follow, columns.begin
  // first. Rows must be requested from top to bottom.
  template <typename Use>
  void row(int64_t y, const Use& use) {
    const PasteTap<S> tap = paste_tap(rows, y);
    if (tap.index != at_) {
      if (tap.index == at_ + 1)
        above_.swap(below_);
      else
        stretch(tap.index, above_);
      stretch(tap.index + 1, below_);
      at_ = tap.index;
    }
    use(above_.data(), below_.data(), tap.fraction);
  }

  PasteAxis<S> rows, columns;

 private:
  void stretch(int64_t i, std::vector<S>& out) {
    for (int64_t j = 0; j < mask_.width + 3; ++j) bordered_[j] = mask_.at(i, j);
    current_loops<PasteLoops<S>>().stretch_row(bordered_.data(), index_.data(), fraction_.data(),
                                               static_cast<int64_t>(index_.size()), out.data());
  }

  BorderedMask<S> mask_;
  std::vector<S> bordered_, fraction_, above_, below_;
  std::vector<int32_t> index_;
  int64_t at_ = -2;
};

// paste(paster, y, out) fills the visible pixels of row y. All other pixels are 0.
template <typename S, typename Out, typename Paste>
void paste_all(const PastedMasks<S>& masks, const Tensor& out, const Paste& paste) {
  const int64_t height = masks.image_height, width = masks.image_width;
  const int64_t blocks = (height + kBlockRows - 1) / kBlockRows;
  parallel_for(masks.count * blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / blocks, first = task % blocks * kBlockRows;
      const int64_t last = std::min(first + kBlockRows, height);
      RowPaster<S> paster(masks, n);
      const auto& columns = paster.columns;
      for (int64_t y = first; y < last; ++y) {
        Out* const row = mutable_data<Out>(out) + (n * height + y) * width;
        const bool shows = paster.rows.shows(y) && columns.begin < columns.end;
        if (!shows) {
          std::fill_n(row, width, Out(0));
          continue;
        }
        std::fill(row, row + columns.begin, Out(0));
        paste(paster, y, row + columns.begin);
        std::fill(row + columns.end, row + width, Out(0));
      }
    }
  });
}

}  // namespace

Tensor paste_masks(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width,
                   std::optional<double> threshold) {
  check_paste_masks("paste_masks", masks, boxes, height, width);
  const auto dtype = threshold ? kBool : masks.scalar_type();
  const Tensor out = in_huge_pages(empty(masks, {masks.size(0), height, width}, dtype));
  const Tensor values = box_input(masks, box_dtype(masks));
  const std::vector<PasteBox> ranges = paste_boxes(boxes, masks.size(2));
  dispatch_floating(masks.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const auto pasted = pasted_masks<S>(values, ranges.data(), height, width);
    const auto& loops = current_loops<PasteLoops<S>>();
    if (threshold) {
      const S bound = round_down<S>(*threshold);
      paste_all<S, bool>(pasted, out, [&](RowPaster<S>& paster, int64_t y, bool* row) {
        paster.row(y, [&](const S* above, const S* below, S fraction) {
          loops.paste_row_above(above, below, fraction, bound,
                                paster.columns.end - paster.columns.begin, row);
        });
      });
      return;
    }
    paste_all<S, T>(pasted, out, [&](RowPaster<S>& paster, int64_t y, T* row) {
      const int64_t n = paster.columns.end - paster.columns.begin;
      paster.row(y, [&](const S* above, const S* below, S fraction) {
        if constexpr (std::is_same_v<T, S>) return loops.paste_row(above, below, fraction, n, row);
        for (int64_t x = 0; x < n; ++x)
          row[x] = static_cast<T>(between(above[x], below[x], fraction));
      });
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("paste_masks", TORCH_BOX(&paste_masks)); }

}  // namespace fastdet::cpu
