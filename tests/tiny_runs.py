"""Runs of train.py so small that a test has several: what they need, and what they wrote."""

import json
import math
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import train

TINY = [
    *("--name", "tiny", "--features", "4", "--blocks", "1", "--growth", "4", "--batch-size", "2"),
    *("--workers", "0", "--device", "cpu", "--precision", "fp32", "--log-every", "1"),
    *("--vgg-weights", "random", "--vgg-layer", "conv1_2", "--val-every", "2", "--save-every", "2"),
    *("--val-images", "2"),
    *("--psnr.steps", "5", "--psnr.patch", "32", "--gan.steps", "4", "--gan.patch", "32"),
]


class SmallDiscriminator(nn.Sequential):
    def __init__(self, patch_size):
        flat = 4 * (patch_size // 2) ** 2
        conv = nn.Conv2d(3, 4, kernel_size=2, stride=2)
        super().__init__(conv, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(flat, 1))


def run(monkeypatch, *args, data=("--train-dir", "photos", "--valid-dir", "photos")):
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, *data, *args])
    return train.main()


def results(name="tiny"):
    folder = Path("checkpoints") / name
    return [(folder / f"{phase}.safetensors").read_bytes() for phase in ("psnr", "gan")]


def rows(name="tiny"):
    return [
        json.loads(line)
        for line in Path("checkpoints", name, "metrics.jsonl").read_text().splitlines()
    ]


def untimed(row):
    timing = ("seconds", "images/s", "data wait", "peak GiB")
    return {key: value for key, value in row.items() if key not in timing}


def stop_at(monkeypatch, count, action):
    """Make the count-th update of the EMA do something else first."""
    calls = []
    update = train.update_ema

    def counting(*args):
        calls.append(1)
        if len(calls) == count:
            action()
        update(*args)

    monkeypatch.setattr(train, "update_ema", counting)


class Killed(BaseException):
    """Ends the process as a kill would: nothing catches it, nothing is saved after it."""


def die():
    raise Killed


def spoil(monkeypatch, steps):
    """Make the pixel loss of these steps nan."""
    calls = []
    loss = train.generator_loss

    def spoiled(*args, **kwargs):
        calls.append(1)
        terms = loss(*args, **kwargs)
        return terms | {"pixel": terms["pixel"] * math.nan} if len(calls) in steps else terms

    monkeypatch.setattr(train, "generator_loss", spoiled)


def read_events(folder):
    """What TensorBoard's own reader finds."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()
