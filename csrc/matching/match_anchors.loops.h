// SPDX-License-Identifier: BSD-3-Clause
// The loops of anchor matching, over blocks of anchors.
#pragma once

#include <cstdint>

#include "../geometry/box.h"
#include "../isa/lane_int.h"
#include "../isa/loops.h"
#include "match_rule.h"

namespace fastdet::cpu {

// The number of anchors that are matched together; their planes and results stay in the L1 cache.
constexpr int64_t kMatchBlock = 256;
// The number of running maxima of a gt: one for each lane of the widest vector.
template <typename T>
constexpr int64_t kMatchLanes = 64 / static_cast<int64_t>(sizeof(T));

// kMatchBlock anchors, one array for each coordinate. An anchor without positive width and height
// overlaps nothing; its corners are at infinity, with x1 > x2 and y1 > y2. Its area is NaN if a
// coordinate is not finite, else infinite. Unused places of a block that is not full hold such
// anchors too, with infinite area.
template <typename T>
struct AnchorBlock {
  T x1[kMatchBlock], y1[kMatchBlock], x2[kMatchBlock], y2[kMatchBlock], area[kMatchBlock];
  Box<T> hull;  // of the anchors that can overlap a gt
};

// The finite gts; `row` is the row of each in the input. A gt without positive width and height has
// an infinite area.
template <typename T>
struct GtPlanes {
  const T *x1, *y1, *x2, *y2, *area;
  const LaneInt<T>* row;
  int64_t size;
};

// The largest IoU of each gt in the blocks so far, and the first and last block that has it:
// kMatchLanes numbers for each gt. Between blocks, of_block is all 0.
template <typename T>
struct GtMaxima {
  T *of_block, *best;
  LaneInt<T>*first, *last;
};

// T is float or double.
template <typename T>
struct FASTDET_EXPORT MatchLoops {
  // Loads n <= kMatchBlock boxes.
  void (*load_anchors)(const Box<T>* boxes, int64_t n, AnchorBlock<T>& block);

  // Finds for each anchor its largest IoU with a gt, and that gt's row (ties: the lowest). For an
  // anchor that overlaps no gt these are 0 and the first row. Adds the block to the maxima.
  // `chosen` has room for all gts.
  void (*best_matches)(const AnchorBlock<T>& anchors, const GtPlanes<T>& gts, int64_t block,
                       int32_t* chosen, const GtMaxima<T>& maxima, T* best_iou,
                       LaneInt<T>* best_row);

  // Writes the row of gt g for each anchor whose IoU with it is `wanted`, which is above 0.
  void (*find_rescuers)(const AnchorBlock<T>& anchors, const GtPlanes<T>& gts, int64_t g, T wanted,
                        LaneInt<T>* rescuer);

  // The result of n anchors. A rescuer is a row, or negative if there is none.
  void (*label_anchors)(const AnchorBlock<T>& anchors, int64_t n, const MatchRule<T>& rule,
                        const T* best_iou, const LaneInt<T>* best_row, const LaneInt<T>* rescuer,
                        int64_t* index);
};

}  // namespace fastdet::cpu
