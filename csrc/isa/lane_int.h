// SPDX-License-Identifier: BSD-3-Clause
// The integer type of the lanes that a comparison of vectors of T gives.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fastdet::cpu {

template <typename T>
using LaneInt = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

}  // namespace fastdet::cpu
