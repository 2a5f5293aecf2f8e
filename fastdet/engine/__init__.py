# SPDX-License-Identifier: BSD-3-Clause
"""Running networks fast on the CPU: `fused.run_fused(module, x)` equals `module(x)`, but is faster.

`fused` keeps a second form of each module, `fusing` makes that form from the module's trace, and
`winograd` computes the 3x3 convolutions of both.
"""
