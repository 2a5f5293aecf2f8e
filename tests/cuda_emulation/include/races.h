// SPDX-License-Identifier: BSD-3-Clause
// Finds races in shared memory: two lanes access a byte, at least one of them writes, and no
// barrier that both take part in lies between. Two atomic accesses are no race. A volatile access
// is as any other: in a compiled kernel, and so for compute-sanitizer, they do not differ.
//
// What is reported is a race whatever the order in which the emulator ran the lanes. What is not
// reported may still be one: of each byte only the last write is kept, and the last read, another
// of its warp and another of another warp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "access.h"

namespace cuda_emulation {

class Races {
 public:
  // For `bytes` of shared memory. Votes and shuffles order accesses if `talks_order`; CUDA promises
  // it of barriers only.
  Races(size_t bytes, bool talks_order) : talks_order_(talks_order), bytes_(bytes) {}

  void start_launch(const void* function) { function_ = function; }
  void start_block() { ++epoch_; }
  void meet_in_block() { ++epoch_; }
  void meet_in_warp(unsigned warp, unsigned mask, bool orders_memory);
  void add(const Access& access, size_t offset);

  // A line for each pair of places; see counting.py.
  std::string lines(uintptr_t image) const;

 private:
  struct Mark {
    uint64_t epoch = 0;  // the interval between two barriers of the block; 0: none
    uint64_t time = 0;   // of the lane
    uint32_t place = 0;
    uint16_t lane = 0;
    Kind kind = Kind::kRead;
  };
  struct Byte {
    Mark write, read, read_by_warp, read_by_other_warp;
  };

  bool ordered(const Mark& before, unsigned lane) const;
  void check(const Mark& before, const Access& access);

  bool talks_order_;
  uint64_t epoch_ = 0;
  std::array<uint64_t, 1024> time_{};  // of each lane: barriers of its warp
  std::array<std::array<uint64_t, 32>, 1024>
      heard_{};  // each lane: of its warp's lanes, up to when
  std::vector<Byte> bytes_;
  const void* function_ = nullptr;
  std::set<std::tuple<const void*, uint32_t, Kind, uint32_t, Kind>> found_;
};

}  // namespace cuda_emulation
