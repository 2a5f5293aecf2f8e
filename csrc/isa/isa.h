// SPDX-License-Identifier: BSD-3-Clause
// The instruction set (ISA) of the hot loops: the best one that the processor supports, or the one
// that the environment variable FASTDET_CPU_ISA names. Plain C++, no torch.
#pragma once

#include <string>
#include <vector>

#define FASTDET_EXPORT __attribute__((visibility("default")))

namespace fastdet::cpu {

// In ascending order. An ISA is usable if the processor supports it and the build contains it.
enum class Isa { kBaseline, kAvx2, kAvx512 };

FASTDET_EXPORT Isa isa();
FASTDET_EXPORT std::string isa_name();
FASTDET_EXPORT std::vector<std::string> usable_isas();

// Throws std::invalid_argument for a name that is unknown or not usable here.
FASTDET_EXPORT void set_isa(const std::string& name);

}  // namespace fastdet::cpu
