# SPDX-License-Identifier: BSD-3-Clause
"""Exports a detector, so that it runs without its code: torch.export packages and ONNX files.

`export.export_detector` writes both, and `metadata.metadata` reads what they say of themselves;
`onnx_ops` gives each operator in standard ONNX operators.
"""
