// SPDX-License-Identifier: BSD-3-Clause
// Rows sorted by group. The group ids may have any value. They get numbers from 0, in the order of
// their first row, by one lookup in a hash table for each row. The rows of a group become
// neighbours and keep their order.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "score_order.h"

namespace fastdet::cpu {

// Numbers the ids 0, 1, 2 ... in the order of their first use. A hash table with open addressing,
// at most half full.
class IdNumbers {
 public:
  uint32_t operator()(int64_t id) {
    if (2 * ids_.size() >= slots_.size()) grow();
    const uint32_t slot = find(id);
    if (slots_[slot] == kFree) {
      slots_[slot] = static_cast<uint32_t>(ids_.size());
      ids_.push_back(id);
    }
    return slots_[slot];
  }

  int64_t size() const { return static_cast<int64_t>(ids_.size()); }

 private:
  static constexpr uint32_t kFree = UINT32_MAX;

  uint32_t find(int64_t id) const {
    const uint32_t mask = static_cast<uint32_t>(slots_.size()) - 1;
    uint32_t slot = static_cast<uint32_t>((id * 0x9E3779B97F4A7C15u) >> 32) & mask;
    while (slots_[slot] != kFree && ids_[slots_[slot]] != id) slot = (slot + 1) & mask;
    return slot;
  }

  void grow() {
    slots_.assign(slots_.empty() ? 256 : 4 * slots_.size(), kFree);
    for (size_t k = 0; k < ids_.size(); ++k) slots_[find(ids_[k])] = static_cast<uint32_t>(k);
  }

  std::vector<uint32_t> slots_;
  std::vector<int64_t> ids_;
};

template <typename T>
struct BoxGroups {
  std::vector<uint32_t> number;    // the group of each row
  std::vector<uint32_t> begin;     // group g is [begin[g], begin[g + 1]) of members
  std::vector<Ranked<T>> members;  // all rows by group
  std::vector<uint32_t> row;       // the row of each member

  BoxGroups(const Ranked<T>* rows, int64_t n, const int64_t* groups)
      : number(n), members(n), row(n) {
    IdNumbers numbers;
    for (int64_t r = 0; r < n; ++r) number[r] = numbers(groups[rows[r].index]);
    begin.assign(numbers.size() + 1, 0);
    for (int64_t r = 0; r < n; ++r) ++begin[number[r]];
    uint32_t total = 0;
    for (uint32_t& place : begin) total += std::exchange(place, total);
    std::vector<uint32_t> next = begin;
    for (int64_t r = 0; r < n; ++r) {
      const uint32_t place = next[number[r]]++;
      members[place] = rows[r];
      row[place] = static_cast<uint32_t>(r);
    }
  }

  int64_t size() const { return static_cast<int64_t>(begin.size()) - 1; }
  int64_t size(int64_t g) const { return begin[g + 1] - begin[g]; }
};

}  // namespace fastdet::cpu
