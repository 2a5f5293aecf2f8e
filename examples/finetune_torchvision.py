# SPDX-License-Identifier: BSD-3-Clause
"""Fine-tune one of torchvision's detectors on your own classes.

Without --weights torchvision downloads its COCO weights. On a machine without a network, give a
file with these weights or with another checkpoint of the same model.

python examples/finetune_torchvision.py --data FOLDER --weights fasterrcnn_mobilenet_v3.pth
"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader, RandomSampler

from fastdet.data import collate, eval_transforms, open_dataset, train_transforms, write_shapes
from fastdet.models import load_torchvision_weights, replace_classes

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="COCO-format folder; without one, shapes are drawn")
parser.add_argument("--model", default="fasterrcnn_mobilenet_v3_large_320_fpn")
parser.add_argument("--weights", type=Path, help="a file with torchvision's keys")
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--size", type=int, default=320, help="shorter side of the images, in pixels")
options = parser.parse_args()

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
data = options.data or write_shapes("shapes")
train = open_dataset(data, "train", transforms=train_transforms())
val = open_dataset(data, "val", transforms=eval_transforms())

model = load_torchvision_weights(
    options.model, options.weights, min_size=options.size, max_size=2 * options.size
)
replace_classes(model, len(train.classes))  # new weights for the class layers only
model.to(device).train()

parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.SGD(parameters, lr=0.005, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=100)  # warm-up
sampler = RandomSampler(train, replacement=True, num_samples=options.steps * options.batch_size)
batches = DataLoader(train, options.batch_size, sampler=sampler, collate_fn=collate)
for step, (images, targets) in enumerate(batches, start=1):
    losses = model([image.to(device) for image in images], targets)
    loss = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if step % 10 == 0:
        print(f"step {step}  loss {loss.item():.3f}", flush=True)
torch.save(model.state_dict(), "finetuned.pt")

model.eval()
with torch.inference_mode():
    found = model([val[0][0].to(device)])[0]
for box, label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True):
    if score > 0.5:
        corners = ", ".join(f"{side:.0f}" for side in box.tolist())
        print(f"{val.classes[label]} {score:.2f} at ({corners})")
