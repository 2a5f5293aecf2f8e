// SPDX-License-Identifier: BSD-3-Clause
// torch's CPU allocator with a BlockCache for large blocks, in the time between `begin` and `end`.
// At other times blocks come from the cache as long as it keeps so much: an optimizer's step takes
// the memory of the maps that backward has freed.
//
// The only file that needs more of torch than the stable ABI: the class of its allocators. So it is
// a library of its own, and fastdet/memory.py loads it only into the version of torch that it was
// built with. Everything works without it.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <torch/headeronly/version.h>

#include <atomic>
#include <mutex>

#include "../isa/isa.h"
#include "block_cache.h"

namespace fastdet::memory {
namespace {

constexpr size_t kLarge = size_t(1) << 20;  // bytes; the C library serves smaller ones well

std::atomic<int> active{0};
std::mutex mutex;
c10::Allocator* torch_allocator = nullptr;  // before ours

// Never destroyed: tensors may be freed after static objects are.
BlockCache& cache() {
  static auto* const instance = new BlockCache;
  return *instance;
}

void free_block(void* block) {
  if (block == nullptr) return;
  bool ours;
  {
    const std::lock_guard lock(mutex);
    ours = cache().has(block);
  }
  if (!ours) return torch_allocator->raw_deallocate(block);
  // Before another thread can get the block: the profiler knows blocks by their addresses.
  c10::profiledCPUMemoryReporter().Delete(block);
  const std::lock_guard lock(mutex);
  cache().keep(block);
}

class CachingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kLarge) return torch_allocator->allocate(bytes);
    void* block = nullptr;
    {
      const std::lock_guard lock(mutex);
      const bool may_grow = active.load(std::memory_order_relaxed) > 0;
      if (may_grow || bytes <= static_cast<size_t>(cache().counts().kept)) {
        block = cache().take(bytes);
      }
    }
    if (block == nullptr) return torch_allocator->allocate(bytes);  // says what is wrong
    c10::profiledCPUMemoryReporter().New(block, bytes);
    return {block, block, &free_block, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

}  // namespace
}  // namespace fastdet::memory

// ---- what fastdet/memory.py calls
// -----------------------------------------------------------------

using namespace fastdet::memory;

extern "C" {

// The version of torch, such as "2.14", whose allocators this library knows.
FASTDET_EXPORT const char* fastdet_memory_torch() {
#define FASTDET_TEXT(x) #x
#define FASTDET_VERSION(major, minor) FASTDET_TEXT(major) "." FASTDET_TEXT(minor)
  return FASTDET_VERSION(TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR);
}

// Makes the allocator torch's, once. Returns whether it is.
FASTDET_EXPORT bool fastdet_memory_install() {
  static CachingAllocator allocator;
  if (torch_allocator == nullptr) {
    c10::Allocator* before = c10::GetCPUAllocator();
    if (before->raw_deleter() == nullptr) return false;
    torch_allocator = before;
    pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); },
                   [] {
                     cache().give_back();  // its pages would be copied at the first write
                     mutex.unlock();
                   });
    c10::SetCPUAllocator(&allocator);
  }
  return c10::GetCPUAllocator() == &allocator;
}

FASTDET_EXPORT void fastdet_memory_begin() { ++active; }
FASTDET_EXPORT void fastdet_memory_end() { --active; }

FASTDET_EXPORT void fastdet_memory_give_back() {
  const std::lock_guard lock(mutex);
  cache().give_back();
}

FASTDET_EXPORT void fastdet_memory_counts(int64_t* counts) {
  const std::lock_guard lock(mutex);
  const Counts& now = cache().counts();
  counts[0] = now.used;
  counts[1] = now.kept;
  counts[2] = now.most;
  counts[3] = now.from_system;
}
}
