"""The benchmarks run to their end, and count operations rightly."""

import dataclasses
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
import compare_runs
import growth
import speed

from config import parse_args
from images.packs import pack_folder
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
    """Smaller in all that only the time depends on."""
    monkeypatch.setattr(growth, "FEATURES", 4)
    monkeypatch.setattr(growth, "BLOCKS", 1)
    flags = ["--sides", "48", "64", "--json", "growth.json", "--plot", "growth.png"]
    monkeypatch.setattr(sys, "argv", ["growth.py", *flags])
    monkeypatch.chdir(tmp_path)
    write = growth.write_photographs

    def write_few(folder, height, width, count):
        height, width = (48, 48) if folder.name == "many" else (min(height, 321), min(width, 481))
        write(folder, height, width, min(count, 2))

    monkeypatch.setattr(growth, "write_photographs", write_few)
    growth.main()
    table = json.loads(Path("growth.json").read_text())
    rows = table["pixels"]
    assert [(row["side"], row["tile"]) for row in rows] == [
        *((side, tile) for side in (48, 64) for tile in ("auto", "0")),
    ]
    assert all(0.1 < row["memory"] < 8 and row["seconds"] > 0 for row in rows)
    assert len(table["processes"]) == len(table["packing"]) == 2
    assert Path("growth.png").stat().st_size > 0


def test_growth_measures_packs_and_draws(tmp_path):
    packed = growth.packing(tmp_path, 96, 128, 3)
    # Its HR pixels and its LR pixels as bytes, and a little more.
    assert packed["bytes"] == pytest.approx(96 * 128 * 3 * (1 + 1 / 16), rel=0.1)
    rows = [dict(side=48, tile=tile, seconds=2.0, memory=0.5) for tile in ("auto", "0")]
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


def write_run(folder, *flags):
    """The settings of a run, as train.py writes them."""
    folder.mkdir(parents=True)
    settings = dataclasses.asdict(parse_args(["--preset", "demo", *flags]))
    (folder / "config.json").write_text(json.dumps(settings))


def write_metrics(file, *scores):
    """The PSNR phase validates twice, its last counts; then the GAN phase, once."""
    rows = zip(("psnr", "psnr", "gan"), scores, strict=True)
    text = "".join(json.dumps({"phase": phase, "psnr": score}) + "\n" for phase, score in rows)
    file.write_text(text)


@pytest.fixture
def hold(tmp_path, monkeypatch, capsys):
    """Compares a run of these settings and scores with two recorded ones; its output, status."""
    write_run(tmp_path / "reference" / "demo")
    for name, scores in {"a": (20.0, 30.0, 29.5), "b": (29.0, 30.2, 29.1)}.items():
        write_metrics(tmp_path / "reference" / "demo" / f"{name}.jsonl", *scores)
    monkeypatch.setattr(compare_runs, "REFERENCE", tmp_path / "reference")
    runs = itertools.count()

    def holding(*scores, flags=()):
        folder = tmp_path / f"run{next(runs)}"
        write_run(folder, *flags)
        write_metrics(folder / "metrics.jsonl", *scores)
        monkeypatch.setattr(sys, "argv", ["compare_runs.py", str(folder)])
        status = compare_runs.main()
        return capsys.readouterr().out.splitlines(), status

    return holding


def test_a_run_is_held_against_recorded_ones(hold):
    low, high = 30.0 - compare_runs.MARGIN, 30.2 + compare_runs.MARGIN
    (psnr, gan), status = hold(99.0, low + 0.01, 28.0)
    band = f"inside the band of 2 recorded runs, {low:.2f} to {high:.2f} dB"
    assert psnr == f"psnr phase: {low + 0.01:.2f} dB, {band}"
    assert gan.startswith("gan phase: 28.00 dB, OUTSIDE") and status == 1
    (psnr, gan), status = hold(0.0, high + 0.01, 29.3)
    assert "OUTSIDE" in psnr and "inside" in gan and status == 1
    assert hold(0.0, 30.1, 29.3)[1] == 0


def test_only_runs_of_the_same_settings_are_compared(hold):
    for same in ([], ["--name", "x", "--seed", "5", "--precision", "fp32"]):
        assert len(hold(30.0, 30.0, 29.3, flags=same)[0]) == 2
    for other in (["--psnr.lr", "1e-3"], ["--valid-dir", "elsewhere"], ["--features", "16"]):
        lines, status = hold(30.0, 30.0, 29.3, flags=other)
        assert len(lines) == 1 and lines[0].startswith("No recorded run") and status == 0


def test_recorded_runs_are_of_the_presets_as_they_are():
    root = compare_runs.REFERENCE
    now = dataclasses.asdict(parse_args(["--preset", "demo"]))
    recorded = compare_runs.read_settings(root / "demo")
    assert recorded == {
        field: json.loads(json.dumps(value))
        for field, value in compare_runs.flat(now).items()
        if field not in compare_runs.VARIABLE
    }


def test_a_folder_that_is_no_run_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_runs.py", str(tmp_path)])
    with pytest.raises(SystemExit) as exit:
        compare_runs.main()
    assert exit.value.code == 2 and "has no config.json" in capsys.readouterr().err
