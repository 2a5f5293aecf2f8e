// SPDX-License-Identifier: BSD-3-Clause
// torch's thread pool over a range.
#pragma once

#include "../torch.h"

namespace fastdet::cpu {

// body(begin, end) over pieces of [0, n) of at least `grain` each. No result may depend on where
// the pieces are cut.
template <typename Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  if (n > 0) torch::stable::parallel_for(0, n, grain, body);
}

// The same as an object, for drivers that are told which pool to use.
constexpr auto kTorchPool = [](int64_t n, int64_t grain, const auto& body) {
  parallel_for(n, grain, body);
};

}  // namespace fastdet::cpu
