// SPDX-License-Identifier: BSD-3-Clause
// Which instruction sets multiply bytes: AVX-512 with VNNI, and AVX2 with AVX-VNNI. In each 32-bit
// lane they sum four products of an unsigned and a signed byte.
#pragma once

#include "isa.h"

namespace fastdet::cpu {

// Whether vectors of this ISA, which is usable, do so on this processor.
FASTDET_EXPORT bool has_byte_products(Isa isa);

// The same for an ISA by its name. Throws as set_isa.
FASTDET_EXPORT bool has_byte_products(const std::string& name);

}  // namespace fastdet::cpu
