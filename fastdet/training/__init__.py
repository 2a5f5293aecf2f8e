# SPDX-License-Identifier: BSD-3-Clause
"""Training on Lightning: `train.train` runs one, `detector_module` and `data_module` are its parts.

Nothing is imported here: the command line reads the options and must not wait for torch.
"""
