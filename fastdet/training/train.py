# SPDX-License-Identifier: BSD-3-Clause
"""Train a detector on a data set; validate a checkpoint on one."""

import inspect
import signal
import sys
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import RichProgressBar

from fastdet.data import Classes
from fastdet.evaluation import CocoMetrics
from fastdet.files import remove_leftovers, replacing
from fastdet.models import MODELS
from fastdet.models.backbone_weights import LIST_OF_TENSORS
from fastdet.models.timm_bodies import LAYERS_WITH_WEIGHTS, NORM_WITH_WEIGHTS
from fastdet.training.checkpoint import (
    AtomicCheckpointIO,
    MovableCheckpoint,
    plain_backbone,
    read_checkpoint,
)
from fastdet.training.data_module import DetectionDataModule
from fastdet.training.detector_module import DetectorModule, load_detector
from fastdet.training.metrics_log import MetricsLog, is_log
from fastdet.training.options import PictureOptions, TrainOptions
from fastdet.training.run_lock import run_lock
from fastdet.training.stopping import Stopped


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

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Print epoch, step, losses and AP."""
        if not trainer.training and trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        segm_ap = metrics.get("val/segm_AP")
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step}  "
            f"loss {metrics['loss']:.3f}  val/loss {metrics['val/loss']:.3f}  "
            f"AP {metrics['val/AP']:.3f}  AP50 {metrics['val/AP50']:.3f}"
            + (f"  segm AP {segm_ap:.3f}" if segm_ap is not None else ""),
            flush=True,
        )


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


# What a builder does by default where there are weights; a resumed training has none to show it.
WITH_WEIGHTS = {
    "batch_norm": NORM_WITH_WEIGHTS,
    "trainable_backbone_layers": LAYERS_WITH_WEIGHTS,
}


def train(options: TrainOptions, model_options: dict[str, Any] | None = None) -> DetectorModule:
    """Train as `options` say.

    Writes OUT/last.ckpt and OUT/best.ckpt after each validation, each whole at every moment, and
    OUT/metrics.csv; with `options.backbone_weights` also OUT/backbone_weights.txt, which lists what
    was loaded. With `options.resume`, the result is that of an uninterrupted training.

    Args:
        options: see `TrainOptions`.
        model_options: further keyword arguments of the function that builds the model.

    Returns:
        The module with the last weights; `.metrics` are its last validation's.

    Raises:
        FileExistsError: OUT holds a training and `options.resume` is off.
        BlockingIOError: another training writes to OUT now.
        ValueError: an option out of range, or data that nothing can be learnt from.
        NonFiniteLossError: a loss is NaN or infinite; OUT/last.ckpt is from before it.
        Stopped: SIGTERM or Ctrl-C came.
    """
    options.check()
    with run_lock(options.out):
        return _train(options, model_options or {})


def _train(options: TrainOptions, model_options: dict[str, Any]) -> DetectorModule:
    """`train`, in a folder that is locked."""
    last, log = options.out / "last.ckpt", options.out / "metrics.csv"
    if not options.resume:
        for file in (last, options.out / "best.ckpt"):
            if file.exists():
                raise FileExistsError(f"{file} exists: give --resume to go on, or another --out")
        # The log of a training that stopped before its first checkpoint may be replaced.
        if log.exists() and not is_log(log):
            raise FileExistsError(f"{log} is not of a training: give another --out")
    for name in ("last.ckpt", "best.ckpt", "metrics.csv", "backbone_weights.txt"):
        remove_leftovers(options.out / name)
    lightning.seed_everything(options.seed, workers=True, verbose=False)
    steps_done, classes = 0, None
    pretrained, backbone_weights = options.pretrained, options.backbone_weights
    model_options = {
        "min_size": options.min_size,
        "max_size": options.max_size,
        "size_divisor": options.size_divisor,
        **_given(
            neck=options.neck, fpn_channels=options.fpn_channels, batch_norm=options.batch_norm
        ),
        **model_options,
    }
    if options.resume:
        before = read_checkpoint(last)
        steps_done = before["global_step"]
        made_with = before["hyper_parameters"]
        built_before = made_with["model_options"] or {}
        if made_with["pretrained_backbone"]:
            built_before = WITH_WEIGHTS | built_before
        _check_as_before(last, "model", made_with["model"], options.model)
        _check_as_before(last, "backbone", made_with["backbone"], plain_backbone(options.backbone))
        builder = inspect.signature(MODELS[options.model]).parameters
        defaults = {name: builder[name].default for name in ("neck", "fpn_channels")}
        of_default = defaults | {"batch_norm": "train"} | built_before
        for name, given in model_options.items():
            _check_as_before(last, name, of_default.get(name, given), given)
        classes = Classes(made_with["classes"], last)
        if pretrained or backbone_weights:
            print(f"the weights are those of {last}: no other file is read", flush=True)
        pretrained, backbone_weights = False, None
        model_options = built_before | model_options
    elif pretrained or backbone_weights:
        model_options = WITH_WEIGHTS | model_options
    data = DetectionDataModule(
        options.data,
        options.batch_size,
        options.workers,
        options.seed,
        classes=classes,
        drop_other_classes=options.drop_other_classes,
        pictures=options.pictures,
        files_anywhere=options.files_anywhere,
    )
    module = DetectorModule(
        model=options.model,
        backbone=options.backbone,
        classes=data.classes,
        category_ids=data.category_ids,
        model_options=model_options,
        pretrained_backbone=pretrained,
        backbone_weights=backbone_weights,
        lr=options.lr,
        seed=options.seed,
    )
    _report_weights(module, options.out / "backbone_weights.txt")
    if module.model.learns_masks:
        data.read_masks()
    trainer = _trainer(
        max_epochs=options.epochs,
        precision=options.precision,
        gradient_clip_val=5.0,
        check_val_every_n_epoch=options.validate_every,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=MetricsLog(log, first_step=steps_done),
        callbacks=[ValidateLastEpoch(), *_checkpoints(options.out), ValidationLine(), ShapesLine()],
        plugins=[AtomicCheckpointIO()],
    )
    resume = last if options.resume else None
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    # What Lightning makes of SIGTERM and of Ctrl-C, or torch of a loading process that they
    # end; Stopped, where the signal came before Lightning had noted it.
    except (SystemExit, Exception) as stop:
        by_user = isinstance(stop.__context__, KeyboardInterrupt)
        if not by_user and not trainer.received_sigterm and not isinstance(stop, Stopped):
            raise
        number = signal.SIGINT if by_user else signal.SIGTERM
        raise Stopped(number, _where(trainer.global_step, last)) from None
    return module


def _check_as_before(last: Path, name: str, trained_with: Any, given: Any) -> None:
    """Raises ValueError if a resumed training is given another value than the checkpoint's."""
    if trained_with != given:
        raise ValueError(f"{name}: {last} was trained with {trained_with}, got {given}")


def _given(**options: Any) -> dict[str, Any]:
    """The options that are not unset (None)."""
    return {name: value for name, value in options.items() if value is not None}


def _report_weights(module: DetectorModule, file: Path) -> None:
    """Prints how much of a file of weights was loaded; `file` gets the whole list."""
    for part in module.model.modules():
        loaded = getattr(part, "loaded_weights", None)
        if loaded is not None:
            print(loaded, flush=True)
            if file.exists() and LIST_OF_TENSORS not in file.read_text():
                raise FileExistsError(f"{file} is not of a training: give another --out")
            with replacing(file) as temporary:
                temporary.write_text("\n".join(loaded.lines()) + "\n")


def _where(step: int, last: Path) -> str:
    if not last.exists():
        return f"stopped at step {step}, before the first checkpoint"
    saved = read_checkpoint(last)["global_step"]
    return f"stopped at step {step}; continue with --resume, from the checkpoint of step {saved}"


def evaluate(
    checkpoint: Path,
    data: Path,
    split: str = "val",
    batch_size: int = 8,
    *,
    drop_other_classes: bool = False,
    pictures: PictureOptions = PictureOptions(),
    files_anywhere: bool = False,
) -> CocoMetrics:
    """COCO metrics of a checkpoint on a split of a data set.

    Args:
        checkpoint: a file that a training wrote.
        data, split: see `fastdet.data.open_dataset`. Its classes are those of the checkpoint, in
            any order and with any ids.
        batch_size: images at a time.
        drop_other_classes: leave out what the split has of classes that the checkpoint lacks.
        pictures: how pictures are read.
        files_anywhere: see `fastdet.data.open_dataset`.

    Raises:
        ValueError: other classes.
    """
    module = load_detector(checkpoint)
    batches = DetectionDataModule(
        data,
        batch_size,
        validation_split=split,
        masks=module.model.learns_masks,
        classes=Classes(module.classes, checkpoint),
        drop_other_classes=drop_other_classes,
        trains=False,
        pictures=pictures,
        files_anywhere=files_anywhere,
    )
    _trainer(logger=False).validate(module, datamodule=batches, verbose=False)
    assert module.metrics is not None
    return module.metrics


def _checkpoints(folder: Path) -> list[lightning.Callback]:
    """After each validation: best.ckpt if val/AP rose, then last.ckpt, which records it."""
    when: dict[str, Any] = {"save_on_train_epoch_end": False, "enable_version_counter": False}
    return [
        MovableCheckpoint(folder, "best", monitor="val/AP", mode="max", **when),
        MovableCheckpoint(folder, "last", **when),
    ]


def _trainer(
    callbacks: list[lightning.Callback] | None = None, **options: Any
) -> lightning.Trainer:
    """One device, a progress bar if the output is a terminal, no summary."""
    on_terminal = sys.stdout.isatty()
    bar: list[lightning.Callback] = [RichProgressBar()] if on_terminal else []
    return lightning.Trainer(
        accelerator="auto",
        devices=1,
        callbacks=[*(callbacks or []), *bar],
        enable_progress_bar=on_terminal,
        enable_model_summary=False,
        **options,
    )
