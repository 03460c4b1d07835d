"""The weights in the box: what they are, what they do, and what the default precision costs."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from spandrel import ModelLoader

from config import Degradation
from dataset import write_demo_photographs
from images.degradation import degrade_whole
from images.files import read_image
from images.resize import imresize, whole_multiple
from images.scores import psnr
from upscaling.devices import has_native_bf16
from upscaling.tiles import upscale
from weights import load_generator

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
PSNR_WEIGHTS = CHECKPOINTS / "compact_x4_psnr.safetensors"
SET14 = CHECKPOINTS.parents[1] / "shared" / "data" / "Set14" / "HR"
SHIPPED = sorted(CHECKPOINTS.glob("compact_x4_*.safetensors"))

NATIVE = has_native_bf16(torch.device("cpu"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two that no weights in the box were trained on, with their LR."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo_photographs(folder)
    paths = sorted((folder / "valid").glob("*.png"))
    assert len(paths) == 2
    images = [read_image(path)[:256, :256] for path in paths]
    return [(imresize(image, 1 / 4), image) for image in images]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_they_are_small_tell_where_they_come_from_and_load_in_spandrel(path):
    assert path.stat().st_size <= 4e6
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata.keys() >= {"data", "step", "config", "commit"}
    assert json.loads(metadata["config"])["growth"] == 32
    low_res = torch.rand(1, 3, 20, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs = ModelLoader().load_from_file(path).model.float().eval()(low_res)
        assert torch.allclose(load_generator(path)(low_res), theirs, atol=1e-5)


def test_the_psnr_network_beats_bicubic(photographs):
    net = load_generator(PSNR_WEIGHTS)
    for low_res, high_res in photographs:
        ours = psnr(upscale(net, low_res), high_res, 4)
        assert ours > psnr(imresize(low_res, 4), high_res, 4) + 0.6


def mean_psnr(enlarge, pairs):
    return np.mean([psnr(enlarge(low_res), high_res, 4) for low_res, high_res in pairs])


def by_all(pairs):
    """PSNR of bicubic and of each network in the box."""
    nets = {path.stem: load_generator(path) for path in SHIPPED}
    scores = {name: mean_psnr(partial(upscale, net), pairs) for name, net in nets.items()}
    return scores | {"bicubic": mean_psnr(lambda low_res: imresize(low_res, 4), pairs)}


def assert_kept(scores, over_bicubic, over_clean):
    """What docs/training.md says of the networks for photographs."""
    assert scores["compact_x4_real_psnr"] >= scores["bicubic"] + over_bicubic
    assert scores["compact_x4_real_psnr"] >= scores["compact_x4_psnr"] + over_clean
    assert scores["compact_x4_real_psnr"] > scores["compact_x4_real"]
    assert scores["compact_x4_real_psnr"] <= scores["compact_x4_real"] + 1.5


@pytest.mark.parametrize("level", ["mild", "strong"])
def test_the_networks_for_photographs_mend_them(level, photographs):
    pairs = [
        (degrade_whole(high_res, Degradation.of_level(level), 4, f"{i}", seed), high_res)
        for i, (_, high_res) in enumerate(photographs)
        for seed in range(6)
    ]
    assert_kept(by_all(pairs), 0.3, 0.8)


@pytest.mark.slow
def test_what_is_said_of_the_networks_for_photographs_on_set14():
    if not SET14.is_dir():
        pytest.skip(f"no Set14 at {SET14}")
    images = [(p.stem, whole_multiple(read_image(p), 4)) for p in sorted(SET14.glob("*.png"))]
    assert len(images) == 14
    for level in ("mild", "strong"):
        settings = Degradation.of_level(level)
        assert_kept(by_all([(degrade_whole(i, settings, 4, n), i) for n, i in images]), 0.6, 1.0)
    clean = by_all([(imresize(image, 1 / 4), image) for _, image in images])
    assert clean["compact_x4_gan"] - 2 <= clean["compact_x4_real"] < clean["compact_x4_gan"]


@pytest.mark.parametrize(
    "path",
    # Emulated, each takes half a minute.
    [pytest.param(p, id=p.stem, marks=() if NATIVE else pytest.mark.slow) for p in SHIPPED],
)
def test_bf16_hardly_ever_differs_by_more_than_a_level_and_costs_no_quality(path, photographs):
    net = load_generator(path)
    # Emulated, bf16 takes a minute for 64x64 pixels: there, half of them have to do.
    side = 64 if NATIVE else 44
    for low_res, high_res in photographs:
        low_res, high_res = low_res[:side, :side], high_res[: 4 * side, : 4 * side]
        exact = upscale(net, low_res)
        with torch.autocast("cpu", torch.bfloat16):
            fast = upscale(net, low_res)
        difference = np.abs(exact.astype(int) - fast)
        assert (difference <= 1).mean() >= 0.999
        assert psnr(fast, high_res, 4) == pytest.approx(psnr(exact, high_res, 4), abs=0.02)


@pytest.mark.parametrize(
    "name, share",
    [
        pytest.param(name, share, marks=() if NATIVE else pytest.mark.slow)
        for name, share in (("realesrgan-x4plus-anime", 0.99), ("realesrgan-x4plus", 0.97))
    ],
)
def test_bf16_differs_more_on_the_published_networks(name, share, published, photographs):
    """These are deeper; docs/claims.md says what is measured here."""
    net, (low_res, _) = load_generator(published / f"{name}.param"), photographs[0]
    low_res = low_res[20:44, 20:44]
    exact = upscale(net, low_res)
    with torch.autocast("cpu", torch.bfloat16):
        difference = np.abs(exact.astype(int) - upscale(net, low_res))
    assert (difference <= 1).mean() >= share and difference.max() <= 10


@pytest.mark.parametrize(
    "name",
    [
        "realesrgan-x4plus-anime",
        pytest.param("realesrgan-x4plus", marks=pytest.mark.slow),
    ],
)
def test_fp32_is_torchs_own_convolutions_to_a_level(name, published, photographs, monkeypatch):
    """With Winograd's as test.py has them, and without, on networks of 6 and 23 blocks."""
    net, (low_res, _) = load_generator(published / f"{name}.param"), photographs[0]
    low_res = low_res[:40, :40]
    ours = upscale(net, low_res)
    monkeypatch.setattr("layers.WORTH_WINOGRAD", float("inf"))
    difference = np.abs(ours.astype(int) - upscale(net, low_res))
    assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3
