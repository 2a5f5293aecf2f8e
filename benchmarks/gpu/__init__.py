# SPDX-License-Identifier: BSD-3-Clause
"""The operators and detectors on a GPU, beside torchvision: `python -m benchmarks.gpu`."""
