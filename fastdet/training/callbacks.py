# SPDX-License-Identifier: BSD-3-Clause
"""What a training prints, when it validates, and which metrics belong to a checkpoint."""

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar

from fastdet.training.detector_module import DetectorModule

FIRST_LINE, NEXT_LINES = 5.0, 30.0  # seconds


class EpochsFromOne(RichProgressBar):
    """Lightning's progress bar; its epochs count from 1, as in the lines and the options."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"


class ProgressLines(lightning.Callback):
    """Prints a line every half minute, for output without a progress bar."""

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the clock of the epoch."""
        self.started = time.monotonic()
        self.next_line = self.started + FIRST_LINE

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Print how far the epoch is, the loss and the time."""
        now, done, total = time.monotonic(), batch_idx + 1, int(trainer.num_training_batches)
        if now < self.next_line or done == total:
            return
        self.next_line = now + NEXT_LINES
        of_batch = (now - self.started) / done
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  batch {done}/{total}  "
            f"loss {trainer.callback_metrics['loss']:.3f}  {of_batch:.2g} s a batch, "
            f"{duration(of_batch * total)} an epoch",
            flush=True,
        )


class ValidateLastEpoch(lightning.Callback):
    """Validates after the last epoch whatever `check_val_every_n_epoch` is; so it is saved, too."""

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Makes the last epoch one that is validated."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class ValidationLine(lightning.Callback):
    """Prints a line after each validation, also where there is no progress bar."""

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the clock of the epoch."""
        self.started = time.monotonic()

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Print epoch, step, losses, AP and the time of the epoch with its validation."""
        if not trainer.training and trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        segm_ap = metrics.get("val/segm_AP")
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step}  "
            f"loss {metrics['loss']:.3f}  val/loss {metrics['val/loss']:.3f}  "
            f"AP {metrics['val/AP']:.3f}  AP50 {metrics['val/AP50']:.3f}"
            + (f"  segm AP {segm_ap:.3f}" if segm_ap is not None else "")
            + f"  {duration(time.monotonic() - self.started)}",
            flush=True,
        )


class Patience(EarlyStopping):
    """Stops a training after some validations without a better AP.

    It decides before the checkpoints are written. So a resumed training stops where an unbroken one
    does, and one that stopped early stays stopped, unless it now has more patience.

    Args:
        validations: how many.
    """

    def __init__(self, validations: int) -> None:
        super().__init__("val/AP", mode="max", patience=validations, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint, without its patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Stop at once where a checkpoint is of a training that stopped early."""
        self._stop_if_over(trainer)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Stop, and say so."""
        super().on_validation_end(trainer, pl_module)
        self._stop_if_over(trainer)

    def _stop_if_over(self, trainer: lightning.Trainer) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
            print(f"stopped early: {self.wait_count} validations without a better AP", flush=True)


class ShapesLine(lightning.Callback):
    """Prints at the end how many shapes of batches there were: each costs a compilation."""

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Print the number of shapes, and the commonest."""
        assert isinstance(pl_module, DetectorModule)
        shapes = pl_module.batch_shapes
        if not shapes:
            return
        commonest = ", ".join(
            f"{'x'.join(map(str, shape))} ({steps} steps)" for shape, steps in shapes.most_common(4)
        )
        print(
            f"shapes of batches, images x height x width x rows of ground truth: {len(shapes)} "
            f"in {shapes.total()} steps; the commonest: {commonest}",
            flush=True,
        )


def duration(seconds: float) -> str:
    """Seconds as people write them: "9 s", "3:20 min", "2:05 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"
