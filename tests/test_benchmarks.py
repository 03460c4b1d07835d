"""The benchmarks run to their end, and count operations rightly."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from matplotlib.axes import Axes
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import ablation
import busy
import commands
import compare_runs
import crops
import degraded
import growth
import peers
import recipe
import speed

from config import LEVELS, Degradation, parse_args
from images.degradation import degrade_whole
from images.files import read_image, write_image
from images.kinds import ImageError
from images.packs import pack_folder
from images.resize import imresize
from images.scores import MetricError
from model import RRDBNet, SRResNet
from training import validation
from weights import WeightsError, save_generator


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
def test_every_engine_runs_the_commands(monkeypatch, tmp_path, capsys):
    """Of those that are installed, on one small picture; each writes about the same pixels."""
    written, run = [], subprocess.run

    def keeping(words, **options):
        done = run(words, **options)
        if (picture := Path(words[-1], "000.png")).exists():
            written.append(read_image(picture).astype(int))
        return done

    row = commands.Row("small", [(30, 41)], tile=24)
    monkeypatch.setattr(commands, "ROWS", {"small": row})
    monkeypatch.setattr(subprocess, "run", keeping)
    flags = ["--repeat", "1", "--rows", "small", "--json", "table.json"]
    monkeypatch.setattr(sys, "argv", ["commands.py", *flags])
    monkeypatch.chdir(tmp_path)
    commands.main()
    seconds = json.loads(Path("table.json").read_text())["small"]
    assert {"import torch", "ours", "official"} <= {*seconds} and min(seconds.values()) > 0
    table = capsys.readouterr().out
    assert "ours  " in table and "official  " in table
    many = commands.Row("300 textures", [(64, 64)] * 300)
    assert commands.described(many, 100) == "300 textures, 100 of them"
    assert commands.described(many, None) == commands.described(many, 500) == "300 textures"
    # Real-ESRGAN's tiles show 10 pixels of their surroundings; ours are whole here.
    assert len(written) == len(seconds) - 1  # all but torch's import
    assert all(np.abs(picture - written[0]).mean() < 1 for picture in written)


@pytest.mark.slow
def test_what_others_cost_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(busy, "ROWS", [("upscale 16", "torch"), ("upscale 16", "ours")])
    monkeypatch.setattr(busy, "BESIDE", {"alone": [], "one that spins": [busy.SPIN]})
    monkeypatch.setattr(sys, "argv", ["busy.py", "--rounds", "1", "--seconds", "0.1"])
    busy.main()
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| | | alone | one that spins |" and len(table) == 4
    assert all("ms, " in cell for line in table[2:] for cell in line.split("|")[3:5])
    busy.turn_of("PSNR step")()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="growth.py reads the memory of its children")
def test_growth_runs_to_its_end(monkeypatch, tmp_path):
    """Smaller in all that only the time depends on."""
    monkeypatch.setattr(growth, "FEATURES", 4)
    monkeypatch.setattr(growth, "BLOCKS", 1)
    monkeypatch.setattr(growth, "WHOLE_LIMIT", 48)
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
    assert [(row["side"], row["tile"]) for row in rows] == [(48, "auto"), (48, "0"), (64, "auto")]
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
    shutil.copy(photos / "sub" / "d.png", photos / "sub_d.png")  # whose strip is another one
    ablation.compare(files, pack_folder(photos, ablation.SCALE), tmp_path / "strips")
    assert len([*(tmp_path / "strips").iterdir()]) == 5


UNCLIPPED = {"betas": (0.9, 0.99), "psnr.clip_grad_norm": 0}
CHANGES = {  # variant -> of the compact preset, and in a first stage
    "ours": ({},),
    "betas": (UNCLIPPED,),
    "rate-2e-3": (UNCLIPPED | {"psnr.lr": 2e-3},),
    "rate-6e-4": (UNCLIPPED | {"psnr.lr": 6e-4},),
    "steady": ({"psnr.milestones": (10**9,)},),
    "batch-4": ({"batch_size": 4},),
    "batch-16": ({"batch_size": 16},),
    "crop-64": ({"psnr.patch": 64},),
    "crop-64-first": ({}, {"psnr.patch": 64}),
    "x2-first": ({}, {"scale": 2, "psnr.patch": 64}),
    "crop-64-batch-4": ({"psnr.patch": 64, "batch_size": 4},),
    "crop-64-frequency": ({"psnr.patch": 64},),
    "crop-64-busiest": ({"psnr.patch": 64, "psnr.busiest_of": 4},),
    "crop-64-busiest-16": ({"psnr.patch": 64, "psnr.busiest_of": 16},),
    "crop-64-busiest-frequency": ({"psnr.patch": 64, "psnr.busiest_of": 4},),
    "box": ({"init_from": "compact_x4_psnr"},),
    "charbonnier": ({},),
    "frequency": ({},),
    "squared": ({"squared_error": True},),
    "ema-0.99": ({"ema_decay": 0.99},),
    "ema-0.9995": ({"ema_decay": 0.9995},),
    "wide": ({"features": 48, "blocks": 2},),
    "adamw": ({},),
    "nadam": ({},),
    "halves": ({},),
}


@pytest.mark.parametrize("name", recipe.VARIANTS)
def test_each_variant_of_the_recipe_changes_what_it_says(name):
    def settings(*flags):
        return compare_runs.flat(dataclasses.asdict(parse_args(["--preset", "compact", *flags])))

    variant, ours = recipe.VARIANTS[name], settings()
    stages = [variant.flags, *([variant.before.flags] if variant.before else [])]
    changes = [dict(settings(*flags).items() - ours.items()) for flags in stages]
    assert tuple(changes) == CHANGES[name]


def test_the_recipes_table_compares_equal_times():
    def curve(*points):
        return [{"minutes": minutes, "psnr": psnr} for minutes, psnr in points]

    curves = {
        ("ours", 0): curve((4, 20), (8, 24), (20, 30)),
        ("ours", 1): curve((5, 20), (10, 26), (21, 30.5)),
        ("x2-first", 0): [{"minutes": 7}, *curve((10, 20), (20, 30))],
    }
    _, _, ours, x2 = (line.split(" | ") for line in recipe.tabulate(curves, 20).splitlines())
    # At 4 minutes seed 1 has no score yet; at 8, it has 20 + 6 * 3 / 5.
    assert ours[2:] == ["", "23.80", "26.41", "28.23", "30.000, 30.500 |"]
    assert x2[2:] == ["", "", "22.00", "26.00", "30.000 |"]


def test_the_recipes_table_has_what_an_earlier_call_has_done(tmp_path):
    rows = {"ours_0_20_0": 6, "ours_1_20_0": 5, "batch-4_0_20_0": 4, "crop-64_0_5_0": 6}
    rows |= {"x2-first_0_20_0": 6, "crop-64-first_2_20_1": 6, "ours_0_timed_20": 6}
    for name, count in rows.items():
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "metrics.jsonl").write_text("{}\n" * count)
    done = recipe.recorded(Namespace(output=tmp_path, minutes=20))
    assert done == [("ours", 0), ("ours", 1), ("crop-64-first", 2)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_peers_take_the_cores_that_are_left():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert peers.limited_threads() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert peers.limited_threads() == (0 if len(before) == os.cpu_count() else len(before))


@pytest.fixture
def one_child(monkeypatch):
    """Of the recipe's children the first is a process; the others, to save its start, are not."""
    import train

    children, run_to_its_end = [], recipe.run_to_its_end

    def run_here(command, folder):
        children.append(command)
        if len(children) == 1:
            return run_to_its_end(command, folder)
        _, _, child, optimizer, distance, *flags = command
        assert child == "--child"
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.chdir(folder)
            for owner, name in ((train, "F"), (train, "make_adam"), (sys, "argv")):
                patch.setattr(owner, name, getattr(owner, name))  # all are put back
            patch.setattr(train, "hear_kill", lambda: None)
            recipe.train_here(optimizer, distance, flags)
        assert end.value.code == 0

    monkeypatch.setattr(recipe, "run_to_its_end", run_here)
    return children


@pytest.mark.slow
def test_the_recipe_ends_in_a_table_and_curves_and_goes_on(
    tmp_path, photos, one_child, monkeypatch, capfd
):
    size = ["--features", "4", "--blocks", "1", "--growth", "4", "--batch-size", "1"]
    command = ["recipe.py", "--train-dir", str(photos), "--valid-dir", str(photos)]
    command += ["--minutes", "0.02", "--variants", "x2-first", "-o", str(tmp_path)]
    monkeypatch.setattr(recipe, "LEAST_SECONDS", 0.2)
    command += ["--flags", *size, "--psnr.patch", "32", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    recipe.main()
    rows = (tmp_path / "recipe.md").read_text().splitlines()[2:]
    assert [row.split(" ")[1] for row in rows] == ["x2-first"]
    assert all(5 < float(row.split("|")[-2]) < 60 for row in rows)  # dB
    with Image.open(tmp_path / "recipe.png") as picture:
        assert picture.width > 500
    start = (tmp_path / "checkpoints" / "x2-first_0_0.02_1" / "config.json").read_text()
    assert json.loads(start)["init_from"].endswith("x2-first_0_0.02_0/psnr.safetensors")
    assert len(one_child) >= 4 and "step/s" in capfd.readouterr().err  # two timed, two trained
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file() and path.name != "metrics.jsonl":
            path.unlink()  # as where only the logs were kept
    kept = []
    monkeypatch.setattr(recipe, "draw", lambda curves, path: kept.append(curves))
    recipe.main()
    assert "step/s" not in capfd.readouterr().err  # all of it was done
    # By the time of a step that was measured at first.
    seconds = recipe.seconds_of_steps("x2-first", recipe.parse_args())
    minutes = 0.0
    for share, second in zip((1 / 3, 1 - 1 / 3), seconds, strict=True):
        minutes += max(5, int(60 * 0.02 * share / second)) * second / 60
    for curve in kept[-1].values():
        assert curve[-1]["minutes"] == pytest.approx(minutes)


def test_the_recipe_puts_optimizer_and_distance_in_their_place(monkeypatch):
    import train

    monkeypatch.setattr(train, "F", train.F)  # both are put back
    monkeypatch.setattr(train, "make_adam", train.make_adam)
    monkeypatch.setattr(train, "run_as_program", lambda: None)
    monkeypatch.setattr(sys, "argv", [])
    recipe.train_here("NAdam", "charbonnier", ["--name", "x"])
    made = train.make_adam(RRDBNet(features=4, blocks=1), (0.5, 0.6), torch.device("cpu"))
    assert type(made) is torch.optim.NAdam and made.defaults["betas"] == (0.5, 0.6)
    assert train.F.l1_loss is recipe.charbonnier and sys.argv == ["train.py", "--name", "x"]


def test_the_recipes_distances():
    result, target = torch.rand(2, 2, 3, 8, 8)
    difference = (result - target).double().numpy()
    charbonnier = np.sqrt(difference**2 + 1e-6).mean()
    assert recipe.charbonnier(result, target).item() == pytest.approx(charbonnier, rel=1e-5)
    spectrum = np.fft.rfft2(difference)
    parts = np.abs(np.stack([spectrum.real, spectrum.imag])).mean()
    expected = np.abs(difference).mean() + 0.05 * parts
    assert recipe.frequency(result, target).item() == pytest.approx(expected, rel=1e-5)


def test_the_recipes_halves(tmp_path, photos):
    write_image(np.full((300, 256, 3), 7, np.uint8), tmp_path / "in" / "a" / "b.png")
    for folder in ("in", "none"):
        write_image(np.zeros((300, 255, 3), np.uint8), tmp_path / folder / "small.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG")
    (folder,) = recipe.halve([tmp_path / "in", tmp_path / "none"], tmp_path / "halves")
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    assert file.relative_to(folder) == Path("a", "b.png.png")
    assert (read_image(file) == 7).all() and read_image(file).shape == (150, 128, 3)


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
    (tmp_path / "reference" / "a table").mkdir()  # as recipe/ is
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


def test_a_phase_that_some_recorded_runs_lack_has_no_band(hold, tmp_path):
    metrics = tmp_path / "reference" / "demo" / "b.jsonl"
    rows = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(row for row in rows if '"gan"' not in row))
    lines, status = hold(30.0, 30.1, 28.0)
    assert len(lines) == 1 and "psnr phase" in lines[0] and status == 0


def test_only_runs_of_the_same_settings_are_compared(hold):
    for same in ([], ["--name", "x", "--seed", "5", "--precision", "fp32"]):
        assert len(hold(30.0, 30.0, 29.3, flags=same)[0]) == 2
    for other in (["--psnr.lr", "1e-3"], ["--valid-dir", "elsewhere"], ["--features", "16"]):
        lines, status = hold(30.0, 30.0, 29.3, flags=other)
        assert len(lines) == 1 and lines[0].startswith("No recorded run") and status == 0


@pytest.mark.parametrize("name", ["demo", "compact"])
def test_recorded_runs_are_of_the_presets_as_they_are(name):
    now = dataclasses.asdict(parse_args(["--preset", name]))
    recorded = compare_runs.read_settings(compare_runs.REFERENCE / name)
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


def test_of_a_log_that_was_cut_the_rows_before_count(tmp_path):
    """The last one ends in a brace, too."""
    row = {"phase": "psnr", "step": 20, "run_step": 20, "psnr": 30.5}
    cut = '{"phase": "psnr", "step": 30, "losses": {"pixel": 0.1}'
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(row)}\n{cut}")
    assert recipe.rows_of(tmp_path) == [row]
    assert compare_runs.last_scores(tmp_path / "metrics.jsonl") == {"psnr": 30.5}


def test_the_network_in_the_box_has_its_own_size_whatever_the_others_have(tmp_path):
    flags = ["--features", "24", "--blocks", "2"]
    given = dict(train_dir=[Path("a")], valid_dir=Path("c"), output=tmp_path, workers=0)
    arguments = Namespace(**given, flags=flags)
    config = parse_args(recipe.flags_of_stages("box", arguments)[0])
    assert (config.features, config.blocks) == (32, 4)
    assert parse_args(recipe.flags_of_stages("crop-64", arguments)[0]).features == 24


# ------------------------------------------------------------------------- degraded photographs


@pytest.fixture
def nearest_weights(tmp_path, identity_weights):
    """A generator at x4 that repeats each pixel."""
    state = safetensors.torch.load_file(identity_weights)
    for i in (1, 2):
        state[f"conv_up{i}.bias"] = torch.zeros(4)
        state[f"conv_up{i}.weight"] = torch.zeros(4, 4, 3, 3)
        state[f"conv_up{i}.weight"][range(4), range(4), 1, 1] = 1
    safetensors.torch.save_file(state, tmp_path / "nearest.safetensors")
    return tmp_path / "nearest.safetensors"


def repeated(low_res):
    return low_res.repeat(4, axis=0).repeat(4, axis=1)


def degrade(image, level, name, seed):
    if level == "clean":
        return imresize(image, 0.25)
    return degrade_whole(image, Degradation(**LEVELS[level]), 4, name, seed)


def reference_psnr(image, high_res):
    """On Y, without 4 pixels on each side; scikit-image's."""
    a, b = (
        each[4:-4, 4:-4] @ (np.array([65.481, 128.553, 24.966]) / 255) for each in (image, high_res)
    )
    return peak_signal_noise_ratio(a, b, data_range=255)


def score_degraded(monkeypatch, capsys, *arguments):
    """The table's rows, split, and all that was printed."""
    monkeypatch.setattr(sys, "argv", ["degraded.py", *map(str, arguments)])
    degraded.main()
    said = capsys.readouterr().out
    table = [line.strip("| ").split(" | ") for line in said.splitlines() if line.startswith("|")]
    return [table[0], *table[2:]], said


@pytest.fixture
def no_pyiqa(monkeypatch):
    """As on most machines."""

    def load_metrics(names, device, has_reference):
        raise MetricError("pyiqa is not there")

    monkeypatch.setattr(validation, "load_metrics", load_metrics)


def test_networks_are_scored_on_degraded_photographs_beside_bicubic(
    nearest_weights, photos, no_pyiqa, tmp_path, monkeypatch, capsys
):
    """A network whose answer is known; and nothing is written."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    (columns, *rows), said = score_degraded(
        monkeypatch, capsys, nearest_weights, "--hr", photos, "--seed", "3"
    )
    assert (
        columns == ["LR", "by", "PSNR", "SSIM"]
        and "No NIQE in this run: pyiqa is not there" in said
    )
    levels = ("clean", "mild", "strong")
    assert [row[:2] for row in rows] == [[a, b] for a in levels for b in ("bicubic", "nearest")]
    names = {"a": "a.png", "b": "b.png", "c": "c.bmp", "sub_d": "sub/d.png"}
    images = {name: read_image(photos / file) for name, file in names.items()}
    for level, by, *scores in rows:
        enlarge = repeated if by == "nearest" else lambda low_res: imresize(low_res, 4)
        expected = [
            reference_psnr(enlarge(degrade(image, level, name, seed=3)), image)
            for name, image in images.items()
        ]
        assert float(scores[0]) == pytest.approx(np.mean(expected), abs=0.0051), (level, by)
    assert sorted(tmp_path.rglob("*")) == before


def test_degraded_photographs_and_results_are_kept_where_asked_for(
    nearest_weights, photos, no_pyiqa, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "kept"
    score_degraded(monkeypatch, capsys, nearest_weights, "--hr", photos, "-o", output)
    for level in ("clean", "mild", "strong"):
        kinds = {
            kind: read_image(output / level / kind / "sub_d.png") for kind in ("LR", "nearest")
        }
        high_res = read_image(photos / "sub" / "d.png")
        assert np.array_equal(kinds["LR"], degrade(high_res, level, "sub_d", seed=0))
        assert np.array_equal(kinds["nearest"], repeated(kinds["LR"]))
        for kind in ("bicubic", "strips"):
            assert len(list((output / level / kind).iterdir())) == 4


def test_pictures_that_were_kept_are_not_scored_the_next_time(
    nearest_weights, photos, no_pyiqa, monkeypatch, capsys
):
    for output in (photos, photos / "kept"):
        with pytest.raises(ImageError, match="choose another --output"):
            score_degraded(monkeypatch, capsys, nearest_weights, "--hr", photos, "-o", output)


@pytest.mark.parametrize("folder", ["clean/LR", "mild", "strong/nearest/more"])
def test_pictures_that_were_kept_and_are_scored_now_are_not_replaced(
    folder, nearest_weights, photos, no_pyiqa, tmp_path, monkeypatch, capsys
):
    """As an earlier call's results are, in the folder that it wrote."""
    kept = tmp_path / "kept"
    shutil.copytree(photos, kept / folder)
    before = (kept / folder / "a.png").read_bytes()
    with pytest.raises(ImageError, match="choose another --output"):
        score_degraded(monkeypatch, capsys, nearest_weights, "--hr", kept / folder, "-o", kept)
    assert (kept / folder / "a.png").read_bytes() == before


def test_niqe_leaves_out_a_blank_page_by_name(nearest_weights, tmp_path, monkeypatch, capsys):
    """Which is no number of anything; a network's own failure is nan."""

    def judge(picture, reference):
        if picture.min() == picture.max():
            raise np.linalg.LinAlgError("SVD did not converge")
        return torch.tensor(2.0)

    pixels = np.random.default_rng(0).integers(0, 256, (104, 208, 3), np.uint8)
    write_image(pixels, tmp_path / "in" / "photo.png")
    write_image(np.full_like(pixels, 255), tmp_path / "in" / "white.png")
    monkeypatch.setattr(validation, "load_metrics", lambda *_, **__: {"niqe": judge})
    flags = ["--hr", tmp_path / "in"]
    (_, *rows), said = score_degraded(monkeypatch, capsys, nearest_weights, *flags)
    assert float(rows[0][-1]) == float(rows[1][-1]) == 2
    assert "NIQE leaves out " in said and "clean white (" in said


def test_true_images_are_those_that_validation_has(tmp_path):
    """The colours that can be seen, spread to where none can."""
    rgba = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    rgba[..., 3] = np.repeat([[0] * 32 + [255] * 32], 64, 0)
    (tmp_path / "in").mkdir()
    Image.fromarray(rgba).save(tmp_path / "in" / "a.png")
    expected = pack_folder(tmp_path / "in", 4).high_res(0)
    assert np.array_equal(degraded.read_high_res(tmp_path / "in", 4)["a"], expected)


def test_an_x3_network_is_read_as_the_scale_says(photos, no_pyiqa, tmp_path, monkeypatch, capsys):
    """Its layout has no mark of it."""
    net = RRDBNet(scale=3, features=4, blocks=1, growth=4)
    save_generator(net, tmp_path / "net.pth", "official")
    rows, _ = score_degraded(
        monkeypatch, capsys, tmp_path / "net.pth", "--hr", photos, "--scale", "3"
    )
    assert len(rows) == 7


def test_each_variant_has_a_look_of_its_own(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        Axes,
        "plot",
        lambda axes, x, y, linestyle, color, label, **_: drawn.append((linestyle, color)),
    )
    monkeypatch.setattr(Axes, "legend", lambda axes, **_: None)
    rows = [{"minutes": 1, "psnr": 20.0}]
    names = [*range(25), 0, 24]  # other seeds of two
    curves = {(str(name), i): rows for i, name in enumerate(names)}
    recipe.draw(curves, tmp_path / "recipe.png")
    assert len(set(drawn[:25])) == 25 and drawn[25:] == [drawn[0], drawn[24]]


def test_niqe_is_of_the_images_that_are_large_enough(
    nearest_weights, photos, tmp_path, monkeypatch, capsys
):
    """Each result is given without its border; here, a metric of another kind stands for it."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    write_image(read_image(photos / "a.png"), folder / "small.png")
    large = np.full((96 + 8, 192 + 8, 3), 51, np.uint8)
    large[:4] = 255  # of the border
    write_image(large, folder / "large.png")
    brightness = {"niqe": lambda picture, reference: picture.mean() * 10}
    monkeypatch.setattr(validation, "load_metrics", lambda *_, **__: brightness)
    (columns, *rows), said = score_degraded(monkeypatch, capsys, nearest_weights, "--hr", folder)
    assert columns[-1] == "NIQE" and "NIQE leaves out 3: clean small (smaller than" in said
    assert [float(row[-1]) for row in rows[:2]] == pytest.approx([2.0, 2.0], abs=0.1)


def test_what_cannot_be_scored_is_named(
    nearest_weights, photos, no_pyiqa, tmp_path, monkeypatch, capsys
):
    for folder in ("empty", "tiny", "alike"):
        (tmp_path / folder).mkdir()
    write_image(np.zeros((16, 40, 3), np.uint8), tmp_path / "tiny" / "t.png")
    for name in ("t.png", "t.bmp"):
        shutil.copy(photos / "c.bmp", tmp_path / "alike" / name)
    for weights, flags, words in (
        (nearest_weights, ["--hr", tmp_path / "none"], "none: no such folder"),
        (nearest_weights, ["--hr", tmp_path / "empty"], "empty holds no PNG"),
        (nearest_weights, ["--hr", tmp_path / "alike"], "another image is called t, too"),
        (nearest_weights, ["--hr", tmp_path / "tiny"], "t.png is too small to be scored at x4"),
        (nearest_weights, ["--hr", photos, "--scale", "2"], "nearest is x4, --scale is 2"),
        ("nowhere", ["--hr", photos], "nowhere: no such file"),
    ):
        with pytest.raises((ImageError, WeightsError), match=words):
            score_degraded(monkeypatch, capsys, weights, *flags)


def test_rows_have_names_of_their_own():
    assert degraded.labels(["a/gan.pth", "b/gan.pth", "compact_x4_psnr"]) == {
        "a_gan": "a/gan.pth",
        "b_gan": "b/gan.pth",
        "compact_x4_psnr": "compact_x4_psnr",
    }
    for alike in (["a/gan.pth", "a/gan.pth"], ["bicubic.pth"], ["a/LR.pth"]):
        with pytest.raises(WeightsError, match="something else is called"):
            degraded.labels(alike)


# -------------------------------------------------------------------------------------- crops


def test_crops_of_photographs_stand_beside_another_networks(
    nearest_weights, tmp_path, random_image, monkeypatch
):
    """Two crops below each other, each pixel where the whole photograph has it."""
    photograph = random_image(120, 150)
    write_image(photograph, tmp_path / "photo.png")
    flags = ["--weights", str(nearest_weights), "--beside", str(nearest_weights)]
    places = [f"{tmp_path / 'photo.png'}:{corner}" for corner in ("0,0", "60,51")]
    output = tmp_path / "real.png"
    monkeypatch.setattr(sys, "argv", ["crops.py", *places, *flags, "-o", str(output)])
    crops.main()
    strip, whole = read_image(output), repeated(photograph)
    width, height = crops.WIDTH, crops.HEIGHT
    assert strip.shape == (22 + 2 * height + crops.GAP, 3 * width + 2 * 4, 3)
    for row, (left, top) in enumerate(((0, 0), (60, 51))):
        expected = whole[4 * top : 4 * top + height, 4 * left : 4 * left + width]
        y = 22 + row * (height + crops.GAP)
        for column in (1, 2):
            x = column * (width + 4)
            assert np.array_equal(strip[y : y + height, x : x + width], expected)
        smooth = imresize(photograph, 4)[4 * top : 4 * top + height, 4 * left : 4 * left + width]
        assert np.array_equal(strip[y : y + height, :width], smooth)


@pytest.mark.parametrize("corner", ["100,0", "0,80", "-1,0"])
def test_a_crop_that_is_not_whole_is_named(corner, tmp_path, random_image):
    write_image(random_image(120, 150), tmp_path / "photo.png")
    with pytest.raises(ImageError, match=r"photo\.png: "):
        crops.enlarged_crop(crops.place(f"{tmp_path / 'photo.png'}:{corner}"), repeated, 4)


def test_a_crop_without_a_corner_is_a_wrong_command(monkeypatch, capsys):
    for wrong in ("photo.png", "photo.png:1", "photo.png:a,b", "C:\\photo.png"):
        monkeypatch.setattr(sys, "argv", ["crops.py", wrong])
        with pytest.raises(SystemExit) as exit:
            crops.main()
        assert exit.value.code == 2 and "invalid place value" in capsys.readouterr().err
