# SPDX-License-Identifier: BSD-3-Clause
"""Exports a detector, so that it runs without its code: torch.export packages and ONNX files.

`export.export_detector` writes both. `onnx_ops` builds each operator from standard ONNX operators.
"""
