// SPDX-License-Identifier: BSD-3-Clause
// Large blocks of memory from the system, which are kept when they are freed and given out again.
//
// Two rules keep this as small as it can be. A block that is kept is divided, and neighbours that
// are kept become one again. Where no block fits, the system is asked for a new one, and as much of
// what is kept goes back first: all blocks together, used and kept, never take more than the most
// that was in use at one time. A heap cannot do this: what it keeps between two blocks in use, it
// can neither give out to a larger one nor give back.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

namespace fastdet::memory {

struct Counts {
  int64_t used = 0;         // bytes of blocks that are given out
  int64_t kept = 0;         // bytes of blocks that are kept
  int64_t most = 0;         // the largest `used` since the last call of give_back
  int64_t from_system = 0;  // blocks that the system was asked for
};

// Not for several threads at once.
class BlockCache {
 public:
  // A block of at least this many bytes, uninitialised; null if the system has no memory.
  void* take(size_t bytes) {
    bytes = (bytes + page_ - 1) / page_ * page_;
    char* block = take_kept(bytes);
    if (block == nullptr) {
      const int64_t most = std::max(counts_.most, counts_.used + int64_t(bytes));
      const int64_t excess = counts_.used + counts_.kept + int64_t(bytes) - most;
      if (excess > 0) release(static_cast<size_t>(excess));
      block = map(bytes);
      if (block == nullptr) {
        give_back();
        block = map(bytes);
      }
      if (block == nullptr) return nullptr;
    }
    used_[block] = bytes;
    counts_.used += static_cast<int64_t>(bytes);
    counts_.most = std::max(counts_.most, counts_.used);
    return block;
  }

  // Whether `take` gave out this block, which has not been kept since.
  bool has(void* block) const { return used_.find(block) != used_.end(); }

  // Keeps a block that the cache has.
  void keep(void* block) {
    const auto found = used_.find(block);
    const size_t bytes = found->second;
    used_.erase(found);
    counts_.used -= static_cast<int64_t>(bytes);
    counts_.kept += static_cast<int64_t>(bytes);
    add_with_neighbours(static_cast<char*>(block), bytes);
  }

  // Gives all that is kept back to the system.
  void give_back() {
    release(static_cast<size_t>(counts_.kept));
    counts_.most = counts_.used;
  }

  const Counts& counts() const { return counts_; }

 private:
  static constexpr size_t kHugePage = size_t(1) << 21;

  // The smallest block that is kept and large enough; what is left of it stays.
  char* take_kept(size_t bytes) {
    const auto found = by_size_.lower_bound({bytes, nullptr});
    if (found == by_size_.end()) return nullptr;
    const auto [size, block] = *found;
    remove(block, size);
    if (size > bytes) add(block + bytes, size - bytes);
    counts_.kept -= static_cast<int64_t>(bytes);
    return block;
  }

  // Gives this many bytes of what is kept back, the smallest blocks first.
  void release(size_t bytes) {
    while (bytes > 0 && !by_size_.empty()) {
      const auto [size, block] = *by_size_.begin();
      const size_t part = std::min(size, bytes);
      remove(block, size);
      munmap(block + size - part, part);
      if (part < size) add(block, size - part);
      counts_.kept -= static_cast<int64_t>(part);
      bytes -= part;
    }
  }

  // New memory, in huge pages where it fills them and the system has them.
  char* map(size_t bytes) {
    const size_t spare = bytes >= kHugePage ? kHugePage : 0;
    void* mapped =
        mmap(nullptr, bytes + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    ++counts_.from_system;
    char* first = static_cast<char*>(mapped);
    if (spare == 0) return first;
    const auto address = reinterpret_cast<uintptr_t>(first);
    char* block = first + ((address + kHugePage - 1) / kHugePage * kHugePage - address);
    if (block > first) munmap(first, static_cast<size_t>(block - first));
    char* end = first + bytes + spare;
    if (end > block + bytes) munmap(block + bytes, static_cast<size_t>(end - block - bytes));
#if defined(MADV_HUGEPAGE)
    madvise(block, bytes, MADV_HUGEPAGE);  // advice: may be refused
#endif
    return block;
  }

  void add_with_neighbours(char* block, size_t bytes) {
    auto next = by_address_.lower_bound(block);
    if (next != by_address_.begin()) {
      const auto [before, size] = *std::prev(next);
      if (before + size == block) {
        remove(before, size);
        block = before;
        bytes += size;
      }
    }
    if (next != by_address_.end() && block + bytes == next->first) {
      const size_t size = next->second;
      remove(block + bytes, size);
      bytes += size;
    }
    add(block, bytes);
  }

  void add(char* block, size_t bytes) {
    by_address_[block] = bytes;
    by_size_.insert({bytes, block});
  }

  void remove(char* block, size_t bytes) {
    by_address_.erase(block);
    by_size_.erase({bytes, block});
  }

  const size_t page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::unordered_map<void*, size_t> used_;
  std::map<char*, size_t> by_address_;          // of what is kept
  std::set<std::pair<size_t, char*>> by_size_;  // the same
  Counts counts_;
};

}  // namespace fastdet::memory
