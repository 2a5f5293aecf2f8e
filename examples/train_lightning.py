# SPDX-License-Identifier: BSD-3-Clause
"""Train a detector with Lightning: fastdet's modules and your own Trainer.

`fastdet train` does the same and is easier to use. Start from this example if you need another
optimiser, logger, strategy or callback.

python examples/train_lightning.py --data FOLDER
"""

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from fastdet.data import write_shapes
from fastdet.training.data_module import DetectionDataModule
from fastdet.training.detector_module import DetectorModule, load_detector


class SGDDetector(DetectorModule):
    """The detector of `fastdet train` with another optimiser."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum, as in the papers."""
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)


def main() -> None:
    """Train, keep the best weights, load them again."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="COCO-format folder; without one: drawn shapes")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="shorter side of the images, pixels")
    parser.add_argument("--out", type=Path, default=Path("runs/lightning"))
    options = parser.parse_args()

    lightning.seed_everything(0)
    data = DetectionDataModule(options.data or write_shapes("shapes"), options.batch_size)
    module = SGDDetector(
        model="retinanet",
        backbone="resnet18",
        classes=data.validation.classes,
        category_ids=data.validation.category_ids,
        model_options={
            "min_size": options.size,
            "max_size": 2 * options.size,
            "fpn_channels": 64,
            "anchor_sizes": [16, 32, 64, 128, 256],
        },
        lr=0.01,
    )
    best = ModelCheckpoint(options.out, "best", monitor="val/AP", mode="max")
    trainer = lightning.Trainer(
        max_steps=options.steps,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        gradient_clip_val=5.0,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        logger=CSVLogger(options.out),
        callbacks=[best],
    )
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data)

    model = load_detector(Path(best.best_model_path)).model
    images = [data.validation[i][0] for i in range(4)]
    with torch.inference_mode():
        detections = model(images)
    numbers = [int((found["scores"] > 0.5).sum()) for found in detections]
    print(f"{best.best_model_path}: {numbers} sure detections in four images")


if __name__ == "__main__":
    main()
