# SPDX-License-Identifier: BSD-3-Clause
"""Reports: `page` writes one HTML file, `charts` draws its line charts, `demo` makes an example.

Nothing is imported here, because `figures`, which formats numbers, must load without torch.
"""
