// SPDX-License-Identifier: BSD-3-Clause
// Large outputs in huge pages. The C library asks the system for new memory for every large block,
// so the first write to each page is a page fault. With pages of 4 KiB the faults cost several
// times as much as the writing; with pages of 2 MiB they cost about as much as the writing. No byte
// beyond the block becomes resident. Without huge pages in the system, nothing changes.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstring>

#include "../torch.h"
#include "parallel.h"

namespace fastdet::cpu {

// For a new tensor, before anything is written to it. Returns the tensor.
inline Tensor in_huge_pages(Tensor tensor) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  constexpr uintptr_t kLarge = 2 * kPage;  // below, the C library reuses memory without faults
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t bytes = static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
  if (bytes < kLarge) return tensor;
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t end = (begin + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);  // advice: may be refused
#endif
  return tensor;
}

// Sets all bytes of a dense tensor to 0. The threads share the page faults of the first writes.
inline void fill_zero(const Tensor& tensor) {
  char* bytes = mutable_data<char>(tensor);
  parallel_for(tensor.numel() * static_cast<int64_t>(tensor.element_size()), 1 << 20,
               [&](int64_t begin, int64_t end) { std::memset(bytes + begin, 0, end - begin); });
}

}  // namespace fastdet::cpu
