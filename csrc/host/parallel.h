// SPDX-License-Identifier: BSD-3-Clause
// Loops over a range on torch's thread pool.
#pragma once

#include "../torch.h"

namespace fastdet::cpu {

// Calls body(begin, end) for pieces of [0, n). All pieces but the last have at least `grain`
// elements. No result may depend on where the pieces begin and end.
template <typename Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  if (n > 0) torch::stable::parallel_for(0, n, grain, body);
}

// parallel_for as an object, for functions that take the thread pool as an argument.
constexpr auto kTorchPool = [](int64_t n, int64_t grain, const auto& body) {
  parallel_for(n, grain, body);
};

}  // namespace fastdet::cpu
