# SPDX-License-Identifier: BSD-3-Clause
"""A data set and detections on it in the browser: `fastdet view`."""
