# SPDX-License-Identifier: BSD-3-Clause
"""Deprecated name of `fastdet.engine.fused`."""

import warnings

from fastdet.engine.fused import forget_fused, has_form, run_fused, unfused

__all__ = ["forget_fused", "has_form", "run_fused", "unfused"]

warnings.warn("fastdet.models.fused is now fastdet.engine.fused", DeprecationWarning, stacklevel=2)
