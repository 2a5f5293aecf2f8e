# SPDX-License-Identifier: BSD-3-Clause
"""Running networks fast on the CPU: `fused.run_fused(module, x)` is `module(x)`, only sooner.

`fused` keeps a second form of each module, which `fusing` makes from its trace; `winograd` has the
3x3 convolutions of both forms; `tracing` says when none of this may happen.
"""
