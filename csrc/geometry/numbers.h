// SPDX-License-Identifier: BSD-3-Clause
// The number types that the operators accept, and the type in which each is computed. For host and
// device; of torch, only its header-only half types are used.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

namespace fastdet {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// The type in which values of type T are computed and summed: double for double, float for all
// others.
template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace fastdet
