"""The benchmarks run to their end, and count operations rightly."""

import itertools
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import ablation
import growth
import speed

from config import parse_args
from dataset import pack_folder
from model import RRDBNet, SRResNet
from weights import save_generator


def test_operations_are_two_for_each_weight_and_pixel_it_meets():
    growth, features = 32, 8
    dense = growth * (4 * features + 6 * growth) + features * (features + 4 * growth)
    square = features * features
    weights = 9 * (2 * 3 * dense + square + 3 * features)  # conv_body and conv_first
    weights += 4 * 4 * (square + 4 * square)  # conv_up1, conv_up2: transposed, on what they enlarge
    weights += 16 * 9 * (square + 3 * features)  # conv_hr and conv_last
    arguments, device = Namespace(features=8, blocks=2), torch.device("cpu")
    assert speed.convolution_flops(arguments, 24, device) == 2 * weights * 24**2


@pytest.mark.slow
def test_speed_fills_every_row(monkeypatch, tmp_path):
    for name, value in dict(PATCH=32, BATCH=2, GAN_BATCH=2, MATRIX=64).items():
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr(speed, "MEMORY_SIDES", (64,))
    monkeypatch.setattr(speed, "PHOTOGRAPHS", ((96, 128, 3),))
    flags = ["--features", "4", "--blocks", "1", "--repeat", "1", "--json", "table.json"]
    monkeypatch.setattr(sys, "argv", ["speed.py", *flags])
    monkeypatch.chdir(tmp_path)
    speed.main()
    rows = json.loads(Path("table.json").read_text())["rows"]
    assert len(rows) == 3 * 2 + 2 * 2 + 1 + (not torch.cuda.is_available())
    assert len({row["row"] for row in rows}) == len(rows)
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="growth.py reads the memory of its children")
def test_growth_runs_to_its_end(monkeypatch, tmp_path):
    flags = ["--sides", "48", "64", "--json", "growth.json", "--plot", "growth.png"]
    monkeypatch.setattr(sys, "argv", ["growth.py", *flags])
    monkeypatch.chdir(tmp_path)
    growth.main()
    table = json.loads(Path("growth.json").read_text())
    assert [row["side"] for row in table["pixels"]] == [48, 48, 64, 64]
    assert len(table["processes"]) == len(table["packing"]) == 2
    assert Path("growth.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="growth.py reads the memory of its children")
def test_growth_measures_and_draws(tmp_path):
    save_generator(RRDBNet(features=growth.FEATURES, blocks=1), tmp_path / "net.safetensors")
    rows = growth.over_pixels(tmp_path, [48])
    assert [row["tile"] for row in rows] == ["auto", "0"]
    assert all(0.1 < row["memory"] < 8 and row["seconds"] > 0 for row in rows)
    packed = growth.packing(tmp_path, 96, 128, 3)
    # Its HR pixels and its LR pixels as bytes, and a little more.
    assert packed["bytes"] == pytest.approx(96 * 128 * 3 * (1 + 1 / 16), rel=0.1)
    growth.draw(rows, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.size == (800, 300)


def test_each_rung_of_the_ladder_changes_one_setting():
    arguments = Namespace(train_dir=["a"], valid_dir="b", steps=7, vgg_weights="random")
    settings, configs = dict(ablation.SRGAN), []
    for changes in ablation.RUNGS.values():
        settings |= changes
        configs.append(parse_args(ablation.flags(settings, arguments)))
    first, last = configs[0], configs[-1]
    assert (first.generator, first.batch_norm, first.relativistic) == ("srresnet", True, False)
    assert not first.vgg_before_activation and first.psnr.steps == first.gan.steps == 7
    assert (last.generator, last.relativistic, last.vgg_before_activation) == ("rrdb", True, True)
    size = ("features", "blocks")
    for before, after in itertools.pairwise(configs):
        changed = {key for key, value in vars(after).items() if value != getattr(before, key)}
        assert len(changed.difference(size)) == 1


def test_the_ladder_ends_in_a_table_and_strips(tmp_path, photos):
    files = {}
    for label, kind in (("first", SRResNet), ("last", RRDBNet)):
        files[label] = tmp_path / f"{label}.safetensors"
        save_generator(kind(features=4, blocks=1), files[label])
    table = ablation.compare(files, pack_folder(photos, ablation.SCALE), tmp_path)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        *("bicubic", "first", "last")
    ]
    count = sum(parameter.numel() for parameter in SRResNet(features=4, blocks=1).parameters())
    assert f"{count:,}" in table
    with Image.open(tmp_path / "sub_d.png") as strip:
        assert strip.width > 4 * 96 and strip.height == 64 + 22
