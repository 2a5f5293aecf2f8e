// SPDX-License-Identifier: BSD-3-Clause
// Counts what the warps of a kernel ask of memory. A request is one instruction of one warp: its
// lanes' accesses at one place of the code.
//
// The emulator runs the lanes of a warp one after another between barriers, so the k-th accesses of
// the lanes at a place make the k-th request there. This is exact where the lanes that come to a
// place come there in the same iterations of the loops around it. Where a lane skips an iteration,
// its later accesses pair with earlier ones of others: the number of requests is then the least
// that the accesses allow, and the sectors of a request may differ from a GPU's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "access.h"

namespace cuda_emulation {

constexpr unsigned kSectorBytes = 32;  // what a GPU's caches fetch and write
constexpr unsigned kBankBytes = 4;     // of shared memory: 32 banks of one word
constexpr unsigned kDataBytes = 128;   // what the lanes of a multiprocessor get in one cycle
constexpr unsigned kMultiprocessors = 132;

// Sums over the requests at one place.
struct Totals {
  uint64_t requests = 0;
  uint64_t lanes = 0;    // active ones
  uint64_t asked = 0;    // bytes of the active lanes
  uint64_t sectors = 0;  // global: touched. shared: passes through the banks
  uint64_t ideal = 0;    // the same, if the bytes asked for lay side by side
  uint64_t cycles = 0;   // at least, of the load-store unit
  uint64_t same = 0;     // atomics: lanes at the address of the request with the most of them
};

// Sums over the launches of one kernel.
struct KernelTotals {
  uint64_t launches = 0, blocks = 0, warps = 0;
  uint64_t talks = 0;     // votes and shuffles of warps
  double l2_sectors = 0;  // at least, that the multiprocessors exchange with the L2 cache
  uint64_t read = 0;      // sectors of inputs that this kernel is the first to touch, weighted
  uint64_t written = 0;   // sectors of outputs that this kernel is the last to write
};

class Requests {
 public:
  // `scale`: how many times as large the grids are to be thought, for how blocks share a cache.
  explicit Requests(double scale) : scale_(scale) {}

  void start_launch(const void* function, uint64_t blocks, uint64_t warps);
  void start_block() { ++block_; }
  void start_lane() { ++turn_; }
  void add(const Access& access);
  void end_turn();  // counts the requests of the warp that ran
  void end_launch();
  void set_memory(const void* to, size_t bytes);
  void add_talk() { ++kernel_->talks; }

  // Memory that holds an input before, or an output after, what is counted.
  // A read of the input counts `weight` times.
  void add_input(const void* at, size_t bytes, uint64_t weight);
  void add_output(const void* at, size_t bytes);

  // A line for each kernel and each place; see counting.py.
  std::string lines(uintptr_t image) const;

 private:
  struct Request {
    uint32_t lanes = 0;
    unsigned bytes = 0;
    std::array<uintptr_t, 32> at;
  };
  struct Site {
    Space space;
    Kind kind;
    unsigned bytes = 0;
    uint64_t turn = 0;  // the lane's run for which `next` counts
    size_t next = 0;
    std::vector<Request> open;  // of this turn of the warp
    size_t num_open = 0;
    Totals totals;
  };
  struct Sector {
    uint64_t read_block = 0;  // the last that read it
    uint32_t writer = 0;      // the last kernel that wrote it, from 1 on
    bool touched = false;
  };
  struct Input {
    uintptr_t first, end;  // sectors
    uint64_t weight;
  };
  using Page = std::array<Sector, 128>;

  Site& site_of(const Access& access);
  void count(Site& site, const Request& request);
  void count_global(Site& site, const Request& request);
  void count_shared(Site& site, const Request& request);
  void touch(uintptr_t sector, Kind kind);
  Sector& sector_of(uintptr_t number);
  uint64_t weight_of(uintptr_t sector) const;

  double scale_;
  uint64_t block_ = 0, turn_ = 0;
  uint64_t blocks_of_an_sm_ = 1;
  std::vector<const void*> functions_;
  std::vector<KernelTotals> kernels_;
  std::map<std::pair<uint32_t, uint64_t>, Site> finished_;  // by kernel and key
  KernelTotals* kernel_ = nullptr;
  uint32_t kernel_number_ = 0;  // from 1 on
  std::vector<uint32_t> number_of_place_;
  std::vector<std::pair<uint64_t, Site>> sites_;  // of this launch
  std::vector<uint32_t> in_turn_;                 // those with open requests
  std::unordered_map<uintptr_t, Page> pages_;
  uintptr_t last_page_number_ = ~uintptr_t{0};
  Page* last_page_ = nullptr;
  std::vector<Input> inputs_;
};

}  // namespace cuda_emulation
