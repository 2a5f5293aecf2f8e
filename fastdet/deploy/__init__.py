# SPDX-License-Identifier: BSD-3-Clause
"""Writing a detector out, so that it runs without its code: torch.export packages and ONNX files.

`export.export_detector` writes both; `onnx_ops` gives each operator in standard ONNX operators.
"""
