// SPDX-License-Identifier: BSD-3-Clause
// The hot loops of the CPU kernels, compiled once for each instruction set (ISA). An operator x
// declares a table of functions in x.loops.h and fills it in x.loops.cpp. CMake compiles that file
// once for each ISA, with FASTDET_ISA as the namespace. current_loops<Table>() is the table of the
// ISA in use.
//
// A loop is plain C++ over pointers and ranges: no torch, no threads, no allocation, so that the
// NumPy entry points run the same code as the torch operators.
#pragma once

#include "isa.h"

namespace fastdet::cpu {

namespace baseline {
template <typename Table>
const Table& loops();
}
namespace avx2 {
template <typename Table>
const Table& loops();
}
namespace avx512 {
template <typename Table>
const Table& loops();
}

template <typename Table>
const Table& current_loops() {
#ifdef FASTDET_HAS_X86_ISAS
  if (isa() == Isa::kAvx512) return avx512::loops<Table>();
  if (isa() == Isa::kAvx2) return avx2::loops<Table>();
#endif
  return baseline::loops<Table>();
}

// In x.loops.cpp, in the namespace FASTDET_ISA: gives this ISA its table, such as
// FASTDET_LOOPS(NmsLoops<float>) { return kLoops<float>; }. The table's type is FASTDET_EXPORT.
#define FASTDET_LOOPS(Table) \
  template <>                \
  FASTDET_EXPORT const Table& loops<Table>()

// Before a loop whose pointers the compiler cannot tell apart: its iterations are independent.
#if defined(__clang__)
#define FASTDET_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#else
#define FASTDET_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#endif

}  // namespace fastdet::cpu
