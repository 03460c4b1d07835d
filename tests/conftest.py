import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def random_image():
    """Factory of uint8 (H, W, 3) noise that the seed determines."""

    def make(height: int, width: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)

    return make


@pytest.fixture
def photos(tmp_path, random_image):
    """A folder of four smooth pictures, 64x48 to 64x96, one of them in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "c.bmp", "sub/d.png")):
        small = Image.fromarray(random_image(8, 6 + 2 * i, seed=i))
        small.resize((8 * (6 + 2 * i), 64), Image.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.fixture
def malicious_pickle(tmp_path):
    """A .pth whose unpickling would create the second file of the pair."""
    marker = tmp_path / "marker"

    class Bomb:
        def __reduce__(self):
            return open, (str(marker), "w")

    import torch

    torch.save({"conv_first.weight": Bomb()}, tmp_path / "bomb.pth")
    return tmp_path / "bomb.pth", marker


@pytest.fixture
def identity_weights(tmp_path):
    """A file of an RRDBNet at x1 that gives back what it is given: delta kernels, empty blocks."""
    import safetensors.torch
    import torch

    channels = {"conv_first": (3, 4), "conv_body": (4, 4), "conv_hr": (4, 4), "conv_last": (4, 3)}
    for dense in (1, 2, 3):
        for i in range(5):
            name = f"body.0.rdb{dense}.conv{i + 1}"
            channels[name] = (4 + 4 * i, 4)
    weights = {}
    for name, (given, made) in channels.items():
        kernel = torch.zeros(made, given, 3, 3)
        if name in ("conv_first", "conv_hr", "conv_last"):
            kernel[range(3), range(3), 1, 1] = 1
        weights |= {f"{name}.weight": kernel, f"{name}.bias": torch.zeros(made)}
    path = tmp_path / "identity" / "x1.safetensors"
    path.parent.mkdir()
    safetensors.torch.save_file(weights, path)
    return path
