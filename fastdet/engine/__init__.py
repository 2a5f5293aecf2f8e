# SPDX-License-Identifier: BSD-3-Clause
"""Runs networks fast on the CPU: `fused.run_fused(module, x)` equals `module(x)`, but is faster.

`fused` keeps a fused form of each module, `fusing` builds this form from a trace of the module, and
`winograd` computes the 3x3 convolutions of both. `quantize` makes a copy of a detector that
computes in 8-bit integers.
"""

from fastdet.engine.quantizing import Calibration, calibrate, quantize, quantized_by

__all__ = ["Calibration", "calibrate", "quantize", "quantized_by"]
