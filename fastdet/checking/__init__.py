# SPDX-License-Identifier: BSD-3-Clause
"""The check of a data set: what is wrong with its annotations and pictures, and its repair."""
