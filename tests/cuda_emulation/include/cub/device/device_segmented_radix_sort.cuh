// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include "device_radix_sort.cuh"
