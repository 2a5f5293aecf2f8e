# SPDX-License-Identifier: BSD-3-Clause
"""The exponential moving average of the weights, by Lightning's callback.

Validation runs on the average, and the checkpoints have it as the model; a resumed training takes
up both. A fixed decay would keep the random first weights in the average of a short training, so
it rises with the steps: (1 + n) / (10 + n), up to the decay that was asked for.
"""

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class MovingAverage(WeightAveraging):
    """The average of the weights and buffers over the steps.

    Args:
        decay: the share of the average that stays at each step, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        def average(mean: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
            if not current.is_floating_point():  # the counters of BatchNorms
                return current
            n = float(updates)
            share = min(decay, (1 + n) / (10 + n))
            return mean.lerp(current, 1 - share)

        super().__init__(avg_fn=average)
