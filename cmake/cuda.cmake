# SPDX-License-Identifier: BSD-3-Clause
# The target fastdet_cuda, where FASTDET_CUDA and the machine allow it, cuda_archs_built, and
# cuda_version_built, nvcc's. A GPU is never needed: nvcc alone decides.
set(cuda_archs_built "")
set(cuda_version_built "")
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
foreach(arch ${archs})
  if(NOT arch MATCHES "^([0-9]+)[af]?$")
    message(FATAL_ERROR "FASTDET_CUDA_ARCHS: expected numbers such as 80;90, got '${arch}'")
  elseif(CMAKE_MATCH_1 LESS 75)
    message(FATAL_ERROR "fastdet: expected GPU architectures from 75 on, got ${arch}; "
                        "FASTDET_CUDA_ARCHS chooses others, FASTDET_CUDA=off builds for CPUs alone")
  endif()
endforeach()
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

string(REGEX MATCH "^[0-9]+\\.[0-9]+" cuda_version_built "${CMAKE_CUDA_COMPILER_VERSION}")
file(STRINGS "${FASTDET_TORCH}/version.py" cuda_of_torch REGEX "^cuda.*=")
string(REGEX MATCH "[0-9]+\\.[0-9]+" cuda_of_torch "${cuda_of_torch}")
string(REGEX MATCH "^[0-9]+" major_of_nvcc "${cuda_version_built}")
if(cuda_of_torch AND NOT cuda_of_torch MATCHES "^${major_of_nvcc}\\.")
  message(WARNING "fastdet: nvcc is of CUDA ${cuda_version_built}, but torch of CUDA "
                  "${cuda_of_torch}: the CUDA kernels run only with a driver for both")
endif()

file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/*/*.cu)
add_library(fastdet_cuda SHARED ${cuda_sources})
# nvcc reads torch's and CUDA's headers five times for each file, 6 s of processor time. So the files
# of a family are compiled as one, and so are families in one line here, whose names differ.
set(units "assignment dense_assignment detections"
          "box_coding deform_conv focal_loss"
          "box_iou deform_attention nms"
          "masks roi_align")
set_target_properties(fastdet_cuda PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
foreach(source ${cuda_sources})
  cmake_path(GET source PARENT_PATH folder)
  cmake_path(GET folder FILENAME family)
  set(unit ${units})
  list(FILTER unit INCLUDE REGEX "(^| )${family}( |$)")
  if(NOT unit)
    set(unit ${family})
  endif()
  string(REPLACE " " "_" unit ${unit})
  set_source_files_properties(${source} PROPERTIES UNITY_GROUP ${unit})
endforeach()
target_include_directories(fastdet_cuda SYSTEM PRIVATE "${torch_include}")
target_compile_definitions(fastdet_cuda PRIVATE ${torch_definitions} USE_CUDA)
# --fmad=false: as -ffp-contract=off on the host. --threads: the architectures side by side.
target_compile_options(
  fastdet_cuda PRIVATE --expt-relaxed-constexpr --extended-lambda --fmad=false --threads=2
                       -Xcompiler=-Wall,-ffp-contract=off)
link_torch_library(fastdet_cuda torch_cpu)
link_torch_library(fastdet_cuda torch_cuda)
