// SPDX-License-Identifier: BSD-3-Clause
// The pool of one thread, for the drivers that are told which pool to use.
#pragma once

#include <cstdint>

namespace fastdet::cpu {

struct Serial {
  template <typename Body>
  void operator()(int64_t n, int64_t, const Body& body) const {
    if (n > 0) body(int64_t(0), n);
  }
  int64_t threads() const { return 1; }
};
constexpr Serial kSerial;

}  // namespace fastdet::cpu
