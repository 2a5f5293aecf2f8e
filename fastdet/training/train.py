# SPDX-License-Identifier: BSD-3-Clause
"""Train a detector on a data set; validate a checkpoint on one."""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger

from fastdet.data import Classes
from fastdet.engine import is_quantized
from fastdet.engine.fused import has_fast_bfloat16
from fastdet.evaluation import CocoMetrics
from fastdet.files import remove_leftovers, replacing
from fastdet.models.backbone_weights import LIST_OF_TENSORS
from fastdet.training.anchor_fit import (
    anchor_fit,
    boxes_in_training,
    fit_line,
    fitting_sizes,
    matched_by_iou,
    object_scale,
)
from fastdet.training.averaging import MovingAverage
from fastdet.training.callbacks import (
    EpochsFromOne,
    Patience,
    ProgressLines,
    ShapesLine,
    ValidateLastEpoch,
    ValidationLine,
)
from fastdet.training.checkpoint import AtomicCheckpointIO, MovableCheckpoint, read_checkpoint
from fastdet.training.data_module import DetectionDataModule
from fastdet.training.detector_module import DetectorModule, load_detector
from fastdet.training.loggers import further_loggers
from fastdet.training.metrics_log import MetricsLog, is_log
from fastdet.training.options import Device, PictureOptions, TrainOptions
from fastdet.training.options_file import is_options, write_options
from fastdet.training.processes import devices_and_nodes, first_speaks, is_first
from fastdet.training.resuming import WITH_WEIGHTS, resumed
from fastdet.training.run_lock import run_lock
from fastdet.training.run_record import RunRecord, describe_data, is_record
from fastdet.training.starting_weights import start_from
from fastdet.training.stopping import Stopped

FILES = (
    "last.ckpt",
    "best.ckpt",
    "metrics.csv",
    "options.yaml",
    "run.yaml",
    "backbone_weights.txt",
)


def train(
    options: TrainOptions,
    model_options: dict[str, Any] | None = None,
    transforms: Callable[[Any, Any], Any] | None = None,
) -> DetectorModule:
    """Train as `options` say.

    Writes OUT/last.ckpt and OUT/best.ckpt after each validation, each whole at every moment,
    OUT/metrics.csv, OUT/options.yaml and OUT/run.yaml; with `options.backbone_weights` also
    OUT/backbone_weights.txt, which lists what was loaded. With `options.resume`, the result is that
    of an uninterrupted training.

    Args:
        options: see `TrainOptions`.
        model_options: further keyword arguments of the function that builds the model.
        transforms: of the training pictures; see `DetectionDataModule`.

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
    if options.device == "gpu" and not torch.cuda.is_available():
        raise ValueError("device: expected a GPU that torch can use, got none: give cpu or auto")
    options = options.complete(on_gpu(options.device))
    options.check()
    with ExitStack() as block:
        block.enter_context(first_speaks())
        if is_first():
            block.enter_context(run_lock(options.out))
        while True:
            try:
                return _train(options, model_options or {}, transforms)
            except torch.OutOfMemoryError:
                smaller = _with_half_batches(options)
                if smaller is None:
                    raise
                options = smaller


def _with_half_batches(options: TrainOptions) -> TrainOptions | None:
    """The options after the memory was not enough; None: there is nothing to halve.

    A process among several cannot start again alone.
    """
    before, steps = options.batch_size, options.optimization
    assert before is not None
    if not options.halve_batch or before == 1 or _processes(options) > 1:
        return None
    half = before // 2
    accumulate = round(before * steps.accumulate / half)
    print(
        f"out of memory with batches of {before}: goes on with batches of {half}, {accumulate} of "
        "them a step",
        flush=True,
    )
    return replace(
        options,
        batch_size=half,
        resume=options.resume or (options.out / "last.ckpt").exists(),
        optimization=replace(steps, accumulate=accumulate),
    )


def training_data(
    options: TrainOptions,
    classes: Classes | None = None,
    transforms: Callable[[Any, Any], Any] | None = None,
) -> DetectionDataModule:
    """The batches of a training.

    Args:
        options: complete ones, see `TrainOptions.complete`.
        classes, transforms: see `DetectionDataModule`.
    """
    assert options.batch_size is not None
    assert options.min_size is not None
    return DetectionDataModule(
        options.data,
        options.batch_size,
        options.workers,
        options.seed,
        classes=classes,
        drop_other_classes=options.drop_other_classes,
        pictures=options.pictures,
        files_anywhere=options.files_anywhere,
        augmentation=options.augmentation,
        transforms=transforms,
        size=options.min_size,
        epochs=options.epochs,
    )


def _train(
    options: TrainOptions,
    model_options: dict[str, Any],
    transforms: Callable[[Any, Any], Any] | None,
) -> DetectorModule:
    """`train`, in a folder that is locked."""
    last = options.out / "last.ckpt"
    if is_first():
        _check_folder(options)
        for name in FILES:
            remove_leftovers(options.out / name)
    lightning.seed_everything(options.seed, workers=True, verbose=False)
    given, before, classes = options, None, None
    model_options = _of_builder(options) | model_options
    if options.resume:
        before = resumed(last, options, model_options)
        classes, model_options = before.classes, before.model_options
        if options.pretrained or options.backbone_weights or options.weights:
            print(f"the weights are those of {last}: no other file is read", flush=True)
        options = replace(options, pretrained=False, backbone_weights=None, weights=None)
    elif options.pretrained or options.backbone_weights:
        model_options = WITH_WEIGHTS | model_options
    if options.batch_norm == "sync" and not on_gpu(options.device) and _processes(options) > 1:
        raise ValueError(
            "batch_norm: sync between processes needs GPUs (torch's SyncBatchNorm); on CPUs "
            "expected group, frozen, eval or train"
        )
    data = training_data(options, classes, transforms)
    module = _module(options, model_options, data)
    assert data.training is not None
    module.object_scale = object_scale(data.training, module.model.border)
    _report_weights(module, options.out / "backbone_weights.txt")
    if module.model.learns_masks:
        data.read_masks()
    if options.compile:
        module.compile_losses()
    print(_start(options, module, data), flush=True)
    if _is_slow(options):
        print(
            "precision: this CPU has no fast bfloat16 (AVX-512); float32 (32-true) is several "
            "times faster",
            flush=True,
        )
    if is_first():
        write_options(given, options.out / "options.yaml")
    splits = {"train": data.training, "val": data.validation}
    about = {"data": {name: describe_data(split) for name, split in splits.items() if split}}
    record = RunRecord(options.out / "run.yaml", options.resume, about)
    trainer = _trainer(
        options.device,
        options.devices,
        max_epochs=options.epochs,
        precision=options.precision,
        gradient_clip_val=options.optimization.clip,
        accumulate_grad_batches=options.optimization.accumulate,
        check_val_every_n_epoch=options.validate_every,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=_loggers(options, before.steps if before else 0),
        callbacks=[record, *_callbacks(options)],
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,  # the data module has its own
    )
    resume = last if options.resume else None
    try:
        with _signal_of_a_loading_process():
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


@contextmanager
def _signal_of_a_loading_process() -> Iterator[None]:
    """Waits for the signal that ended a loading process: this process may get it a moment later."""
    try:
        yield
    except RuntimeError as error:
        if "killed by signal" in str(error):
            time.sleep(1)  # the signal's handler raises
        raise


def _check_folder(options: TrainOptions) -> None:
    """Raises FileExistsError where a training would replace what it should not."""
    if options.resume:
        return
    for name in ("last.ckpt", "best.ckpt", "report.html"):
        if (file := options.out / name).exists():
            raise FileExistsError(f"{file} exists: give --resume to go on, or another --out")
    # What a training wrote that stopped before its first checkpoint may be replaced.
    of_training = {"metrics.csv": is_log, "options.yaml": is_options, "run.yaml": is_record}
    for name, is_ours in of_training.items():
        if (file := options.out / name).exists() and not is_ours(file):
            raise FileExistsError(f"{file} is not of a training: give another --out")


def _of_builder(options: TrainOptions) -> dict[str, Any]:
    """The keyword arguments of the model's builder that the options name."""
    given = {
        "min_size": options.min_size,
        "max_size": options.max_size,
        "size_divisor": options.size_divisor,
        "neck": options.neck,
        "fpn_channels": options.fpn_channels,
        "batch_norm": options.batch_norm,
        "anchor_sizes": None if options.anchor_sizes == "auto" else options.anchor_sizes,
    }
    return {name: value for name, value in given.items() if value is not None}


def _module(
    options: TrainOptions, model_options: dict[str, Any], data: DetectionDataModule
) -> DetectorModule:
    """The detector that is trained, with the anchors and the weights it starts from."""
    lr = options.lr
    assert lr is not None  # the options are complete
    if options.optimization.lr_for_batch is not None:
        lr *= _images_of_a_step(options) / options.optimization.lr_for_batch
    arguments: dict[str, Any] = {
        "model": options.model,
        "backbone": options.backbone,
        "classes": data.classes,
        "category_ids": data.category_ids,
        "pretrained_backbone": options.pretrained,
        "backbone_weights": options.backbone_weights,
        "lr": lr,
        "seed": options.seed,
        "multi_scale": options.augmentation.multi_scale,
        "optimization": asdict(options.optimization),
    }
    module = DetectorModule(model_options=model_options, **arguments)
    cells = module.model.anchor_cells()
    if matched_by_iou(cells):
        assert data.training is not None
        boxes = boxes_in_training(data.training, module.model.border)
        now, best = anchor_fit(cells, boxes), fitting_sizes(cells, boxes)
        print(fit_line(now, best, boxes), flush=True)
        if options.anchor_sizes == "auto" and not options.resume:
            own = {"anchor_sizes": best.sizes}
            module = DetectorModule(model_options=model_options | own, **arguments)
    elif options.anchor_sizes == "auto":
        raise ValueError(
            f"anchor_sizes: auto is for detectors that match anchors by IoU, such as faster_rcnn "
            f"and retinanet, got {options.model}"
        )
    if options.weights is not None:
        print(start_from(module.model, options.weights, data.classes), flush=True)
    return module


def _start(options: TrainOptions, module: DetectorModule, data: DetectionDataModule) -> str:
    """What is trained, on what and where."""
    assert data.training is not None
    sets = (("training", data.training), ("validation", data.validation))
    return (
        "; ".join(
            f"{name}: {len(split):,} pictures, {split.num_objects:,} boxes" for name, split in sets
        )
        + f"; {len(data.classes) - 1} classes\n{options.model}, {options.backbone}, "
        f"{options.min_size} to {options.max_size} pixels, {_images_of_a_step(options)} images a "
        f"step, {options.optimization.optimizer}, learning rate {module.lr:.3g}, "
        f"{options.epochs} epochs, on {device_name(options.device)}"
    )


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
    device = "cpu" if is_quantized(module.model) else "auto"
    _trainer(device, logger=False).validate(module, datamodule=batches, verbose=False)
    assert module.metrics is not None
    return module.metrics


def on_gpu(device: Device) -> bool:
    """Whether a training with this option runs on a GPU."""
    return device == "gpu" or (device == "auto" and torch.cuda.is_available())


def device_name(device: Device) -> str:
    """The device of a training, for people."""
    return torch.cuda.get_device_name() if on_gpu(device) else "the CPU"


def _is_slow(options: TrainOptions) -> bool:
    """Whether the device computes the precision more slowly than float32."""
    on_cpu = not on_gpu(options.device)
    return on_cpu and options.precision == "bf16-mixed" and not has_fast_bfloat16()


def _processes(options: TrainOptions) -> int:
    return math.prod(devices_and_nodes(options.devices))


def _images_of_a_step(options: TrainOptions) -> int:
    assert options.batch_size is not None
    return options.batch_size * options.optimization.accumulate * _processes(options)


def _loggers(options: TrainOptions, first_step: int) -> list[Logger]:
    """Of the first process; the others have none."""
    if not is_first():
        return []
    log = MetricsLog(options.out / "metrics.csv", first_step=first_step)
    return [log, *further_loggers(options.loggers, options.out)]


def _callbacks(options: TrainOptions) -> list[lightning.Callback]:
    """The average before the checkpoints, which hold it; the lines after all."""
    callbacks: list[lightning.Callback] = [ValidateLastEpoch()]
    if options.optimization.ema is not None:
        callbacks.append(MovingAverage(options.optimization.ema))
    callbacks += [*_checkpoints(options.out), ValidationLine(), ShapesLine()]
    if options.patience is not None:
        callbacks.append(Patience(options.patience))
    if not sys.stdout.isatty():
        callbacks.append(ProgressLines())
    return callbacks


def _checkpoints(folder: Path) -> list[lightning.Callback]:
    """After each validation: best.ckpt if val/AP rose, then last.ckpt, which records it."""
    when: dict[str, Any] = {"save_on_train_epoch_end": False, "enable_version_counter": False}
    return [
        MovableCheckpoint(folder, "best", monitor="val/AP", mode="max", **when),
        MovableCheckpoint(folder, "last", **when),
    ]


def _trainer(
    device: Device = "auto",
    devices: int | None = None,
    callbacks: Sequence[lightning.Callback] = (),
    **options: Any,
) -> lightning.Trainer:
    """A progress bar if the output is a terminal, no summary."""
    on_terminal = sys.stdout.isatty() and is_first()
    bar: list[lightning.Callback] = [EpochsFromOne()] if on_terminal else []
    number, nodes = devices_and_nodes(devices)
    # Of a network's parameters some may have no gradient in a step, such as those of an unused map.
    several = {"strategy": "ddp_find_unused_parameters_true"} if number * nodes > 1 else {}
    return lightning.Trainer(
        accelerator=device,
        devices=number,
        num_nodes=nodes,
        callbacks=[*callbacks, *bar],
        enable_progress_bar=on_terminal,
        enable_model_summary=False,
        **several,
        **options,
    )
