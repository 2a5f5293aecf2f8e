// SPDX-License-Identifier: BSD-3-Clause
// Chooses the instruction set: the one of FASTDET_CPU_ISA, else the best one. set_isa changes it.
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "byte_products.h"
#ifdef FASTDET_HAS_X86_ISAS
#include <cpuid.h>
#endif

namespace fastdet::cpu {

namespace {

struct IsaName {
  Isa isa;
  const char* name;
};

constexpr std::array kIsas = {IsaName{Isa::kBaseline, "baseline"}, IsaName{Isa::kAvx2, "avx2"},
                              IsaName{Isa::kAvx512, "avx512"}};

#ifdef FASTDET_HAS_X86_ISAS
// Clang 14 does not know __builtin_cpu_supports("f16c").
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

bool is_usable(Isa isa) {
  if (isa == Isa::kBaseline) return true;
#ifdef FASTDET_HAS_X86_ISAS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (isa == Isa::kAvx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Isa best() {
  Isa chosen = Isa::kBaseline;
  for (const auto& [isa, name] : kIsas)
    if (is_usable(isa)) chosen = isa;
  return chosen;
}

Isa parse(const std::string& wanted) {
  for (const auto& [isa, name] : kIsas)
    if (wanted == name && is_usable(isa)) return isa;
  std::string usable;
  for (const auto& name : usable_isas()) usable += (usable.empty() ? "" : ", ") + name;
  throw std::invalid_argument("FASTDET_CPU_ISA: expected one of " + usable +
                              " on this processor, got '" + wanted + "'");
}

// An error at load time would be a crash without a traceback, so a wrong value is only reported.
Isa initial() {
  const char* wanted = std::getenv("FASTDET_CPU_ISA");
  if (!wanted || !*wanted) return best();
  try {
    return parse(wanted);
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "fastdet: %s; using the best instead\n", error.what());
    return best();
  }
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{initial()};
  return isa;
}

}  // namespace

Isa isa() { return current().load(std::memory_order_relaxed); }

std::string isa_name() { return kIsas[static_cast<size_t>(isa())].name; }

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const auto& [isa, name] : kIsas)
    if (is_usable(isa)) names.push_back(name);
  return names;
}

bool has_byte_products(Isa isa) {
  // Asked once: in a virtual machine it takes long.
  static const std::array known = [] {
    bool avx2 = false, avx512 = false;
#ifdef FASTDET_HAS_X86_ISAS
    unsigned eax, ebx, ecx, edx;
    avx2 = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
    avx512 = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ecx >> 11 & 1);
#endif
    return std::array{false, avx2, avx512};
  }();
  return known[static_cast<size_t>(isa)];
}

bool has_byte_products(const std::string& name) { return has_byte_products(parse(name)); }

void set_isa(const std::string& name) { current() = parse(name); }

}  // namespace fastdet::cpu
