# SPDX-License-Identifier: BSD-3-Clause
"""Deprecated name of `fastdet.deploy.export`."""

import warnings

from fastdet.deploy.export import export_detector, metadata

__all__ = ["export_detector", "metadata"]

warnings.warn("fastdet.export is now fastdet.deploy.export", DeprecationWarning, stacklevel=2)
