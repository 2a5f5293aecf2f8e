// SPDX-License-Identifier: BSD-3-Clause
// How Winograd's algorithm divides the tiles of a map and the panels of its outputs among threads.
#pragma once

#include <algorithm>
#include <atomic>

#include "../isa/panel.h"
#include "tiled_map.h"

namespace fastdet::cpu {

// A workspace of a thread. It is kept until the thread ends: the C library returns blocks of this
// size to the system, and a page fault for each of their pages takes longer than the transforms.
inline float* kept_workspace(int64_t floats) {
  thread_local Workspace kept(0);
  thread_local int64_t size = 0;
  if (size < floats) {
    kept = Workspace(0);  // frees the old one first
    kept = Workspace(floats);
    size = floats;
  }
  return kept.data();
}

// Blocks of tiles, whose inputs are transformed at a time, and groups of panels. Blocks are divided
// among the threads; if there are fewer blocks than threads, as in small maps, groups are divided,
// too, and each thread transforms the inputs again.
class TileDivision {
 public:
  // At most so many tiles in a block, and panels in a group.
  TileDivision(int64_t tiles, int64_t most_tiles, int64_t panels, int64_t most_panels,
               int64_t threads)
      : tiles_(tiles), panels_(panels), threads_(threads) {
    blocks_ = round_up(tiles, most_tiles) / most_tiles;
    if (blocks_ > threads_) blocks_ = round_up(blocks_, threads_);
    block_tiles_ = blocks_ ? round_up(tiles, blocks_) / blocks_ : 1;
    blocks_ = round_up(tiles, block_tiles_) / block_tiles_;
    const int64_t pieces = blocks_ ? round_up(threads_, blocks_) / blocks_ : 1;
    const int64_t some = std::max(pieces, round_up(panels, most_panels) / most_panels);
    group_panels_ = std::max<int64_t>(1, round_up(panels, some) / some);
    groups_ = round_up(panels, group_panels_) / group_panels_;
  }

  int64_t block_tiles() const { return block_tiles_; }
  int64_t group_panels() const { return group_panels_; }

  // Calls transform(tile, past tile) for a block and then compute(tile, past tile, panel, past
  // panel) for one or more of its groups, on the same thread. A thread takes all groups of a block
  // at a time if there are blocks for all threads. It takes the next when it is done, so that a
  // thread that the system interrupts does not delay the others. `pool` is as kTorchPool.
  template <typename Pool, typename Transform, typename Compute>
  void run(const Pool& pool, const Transform& transform, const Compute& compute) const {
    const int64_t items = blocks_ * groups_;
    const int64_t taken = blocks_ < threads_ ? 1 : groups_;
    std::atomic<int64_t> next = 0;
    pool(std::min(threads_, items), 1, [&](int64_t, int64_t) {
      for (int64_t begin; (begin = next.fetch_add(taken)) < items;)
        for (int64_t item = begin; item < begin + taken; ++item) {
          const int64_t tile = item / groups_ * block_tiles_;
          const int64_t past = std::min(tile + block_tiles_, tiles_);
          const int64_t panel = item % groups_ * group_panels_;
          if (item == begin) transform(tile, past);
          compute(tile, past, panel, std::min(panel + group_panels_, panels_));
        }
    });
  }

 private:
  int64_t tiles_, panels_, threads_, blocks_, block_tiles_, group_panels_, groups_;
};

}  // namespace fastdet::cpu
