# SPDX-License-Identifier: BSD-3-Clause
"""Prints the instruction sets below the best one: the Makefile runs the op tests on each."""

from fastdet import _native

print(*_native.usable_cpu_isas()[:-1])
