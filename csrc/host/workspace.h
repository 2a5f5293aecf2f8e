// SPDX-License-Identifier: BSD-3-Clause
// Memory of a kernel's own.
#pragma once

#include <cstdint>
#include <memory>

namespace fastdet::cpu {

// Room for n values, uninitialised, that begins on a cache line.
template <typename T>
class Workspace {
 public:
  explicit Workspace(int64_t n) : lines_(new Line[(n + kValues - 1) / kValues]) {}
  T* data() const { return lines_[0].values; }

 private:
  static constexpr int64_t kValues = 64 / sizeof(T);
  struct alignas(64) Line {
    T values[kValues];
  };
  std::unique_ptr<Line[]> lines_;
};

}  // namespace fastdet::cpu
