# SPDX-License-Identifier: BSD-3-Clause
# The target fastdet_cuda, where FASTDET_CUDA and the machine allow it, and cuda_archs_built.
# A GPU is never needed: nvcc alone decides.
set(cuda_archs_built "")
if(NOT FASTDET_CUDA MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "FASTDET_CUDA: expected auto, on or off, got '${FASTDET_CUDA}'")
endif()
if(FASTDET_CUDA STREQUAL "off")
  message(STATUS "fastdet: CUDA kernels not built (FASTDET_CUDA=off)")
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(FASTDET_CUDA STREQUAL "on")
    message(FATAL_ERROR "fastdet: FASTDET_CUDA=on, but no nvcc was found")
  endif()
  message(STATUS "fastdet: CUDA kernels not built (no nvcc was found)")
  return()
endif()

# The visible GPU's architecture, else Ampere and Hopper; PTX of the newest for what comes later.
if(FASTDET_CUDA_ARCHS)
  set(archs ${FASTDET_CUDA_ARCHS})
else()
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE archs ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" archs "${archs}")
  list(TRANSFORM archs REPLACE "\\." "")
  list(REMOVE_DUPLICATES archs)
  if(NOT archs)
    set(archs 80 90)
  endif()
endif()
list(SORT archs COMPARE NATURAL)
list(GET archs -1 newest)
set(CMAKE_CUDA_ARCHITECTURES ${archs})
list(TRANSFORM CMAKE_CUDA_ARCHITECTURES APPEND "-real")
list(APPEND CMAKE_CUDA_ARCHITECTURES "${newest}-virtual")
list(JOIN archs " " cuda_archs_built)
message(STATUS "fastdet: CUDA kernels for ${cuda_archs_built} + PTX")

set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)

file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/*/*.cu)
add_library(fastdet_cuda SHARED ${cuda_sources})
target_include_directories(fastdet_cuda SYSTEM PRIVATE "${torch_include}")
target_compile_definitions(fastdet_cuda PRIVATE ${torch_definitions} USE_CUDA)
# --fmad=false: as -ffp-contract=off on the host. --threads: the architectures side by side.
target_compile_options(
  fastdet_cuda PRIVATE --expt-relaxed-constexpr --extended-lambda --fmad=false --threads=2
                       -Xcompiler=-Wall,-ffp-contract=off)
link_torch_library(fastdet_cuda torch_cpu)
link_torch_library(fastdet_cuda torch_cuda)
