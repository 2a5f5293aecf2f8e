# SPDX-License-Identifier: BSD-3-Clause
"""Detectors applied to pictures, and the results written."""
