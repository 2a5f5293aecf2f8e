# SPDX-License-Identifier: BSD-3-Clause
"""Showing results: `page` writes a report as one HTML file, `charts` its lines, `demo` fills one.

Nothing is imported here: `figures`, which says how a number reads, must not wait for torch.
"""
