"""Training from end to end at a tiny size: both phases, the hand-over, resume, bad input."""

import errno
import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from programs import ends
from tiny_runs import TINY, Killed, die, results, rows, run, spoil, stop_at, untimed
from torch._utils import ExceptionWrapper

import train
import training.log
import training.runs
import training.validation
from config import Config, Phase, parse_args
from dataset import Crops
from images.files import read_image, write_image
from model import RRDBNet, SRResNet, UNetDiscriminator
from training.monitor import Clock
from training.ranks import Ranks
from training.runs import RunFolder, load_checkpoint
from training.settings import At
from utils import Bar
from weights import init_generator, load_generator, save_generator

ROOT = Path(__file__).parents[1]


# ------------------------------------------------------------------------------------- both phases


def test_one_run_trains_both_phases_and_writes_everything(workplace, monkeypatch, capsys):
    run(monkeypatch)
    folder = workplace / "checkpoints" / "tiny"
    written = {path.name.split(".")[0] for path in folder.iterdir()}
    assert written == {
        *("last", "psnr", "psnr_best", "gan", "generators"),
        *("config", "metrics", "curves", "samples", "events"),
    }
    assert json.loads((folder / "config.json").read_text())["psnr"]["steps"] == 5
    assert [(row["phase"], row["step"]) for row in rows()] == [
        *(("psnr", 2), ("psnr", 4), ("psnr", 5)),
        *(("gan", 2), ("gan", 4)),
    ]
    for row in rows():
        assert {"psnr", "ssim", "bicubic_psnr", "bicubic_ssim", "seconds"} <= row.keys()
    assert rows()[0]["losses"].keys() == {"pixel"}
    assert {"images/s", "data wait", "D(real)", "D(fake)", "pairs right"} <= rows()[-1].keys()
    terms = {"pixel", "perceptual", "adversarial", "discriminator"}
    assert rows()[-1]["losses"].keys() == terms
    assert len(list((folder / "samples").glob("*.png"))) == 5 * 2
    for phase in ("psnr", "gan"):
        assert load_generator(folder / f"{phase}.safetensors").scale == 4
        with safetensors.safe_open(folder / f"{phase}.safetensors", "pt") as file:
            assert file.metadata()["phase"] == phase
    assert "python test.py" in capsys.readouterr().out


def test_a_phase_can_be_validated_at_steps_of_its_own(workplace, small_discriminator, monkeypatch):
    run(monkeypatch, "--gan.val-every", "1")
    steps = {name: [r["step"] for r in rows() if r["phase"] == name] for name in ("psnr", "gan")}
    assert steps == {"psnr": [2, 4, 5], "gan": [1, 2, 3, 4]}


def test_validations_and_saving_do_not_count_as_time_of_steps(
    workplace, small_discriminator, monkeypatch
):
    restarts, events = Clock.restart, []
    validate, save = train.Validation.__call__, train.RunFolder.save
    named = ((Clock, "restart", restarts), (train.Validation, "__call__", validate))
    for kind, name, method in (*named, (train.RunFolder, "save", save)):

        def noting(self, *args, name=name, method=method):
            events.append(name)
            return method(self, *args)

        monkeypatch.setattr(kind, name, noting)
    run(monkeypatch, "--val-every", "2", "--save-every", "1", "--gan.steps", "0")
    assert events.count("save") == 5 and events.count("__call__") == 3
    followed = {before: after for before, after in pairwise(events) if before != "restart"}
    assert followed == {"save": "restart", "__call__": "restart"}


def test_the_gan_phase_starts_from_the_psnr_phases_average(
    workplace, small_discriminator, monkeypatch
):
    # With a learning rate of next to nothing, the generator stays where the hand-over put it.
    run(monkeypatch, "--gan.lr", "1e-30")
    psnr, gan = (
        safetensors.torch.load_file(f"checkpoints/tiny/{name}.safetensors")
        for name in ("psnr", "gan")
    )
    last = torch.load("checkpoints/tiny/last.pt", weights_only=True)
    for name, tensor in psnr.items():
        torch.testing.assert_close(gan[name], tensor, rtol=0, atol=1e-7)
        torch.testing.assert_close(last["net_g"][name], tensor, rtol=0, atol=1e-7)


def test_the_average_is_of_all_steps_and_is_what_is_saved(
    workplace, small_discriminator, monkeypatch
):
    snapshots = []
    update = train.update_ema

    def recording(ema, net, decay):
        snapshots.append((decay, [parameter.detach().clone() for parameter in net.parameters()]))
        update(ema, net, decay)

    monkeypatch.setattr(train, "update_ema", recording)
    run(monkeypatch, "--gan.steps", "0", "--ema-decay", "0.25")
    torch.manual_seed(0)
    average = [p.detach().double() for p in RRDBNet(features=4, blocks=1, growth=4).parameters()]
    assert [decay for decay, _ in snapshots] == [1 / 11, 2 / 12, 3 / 13, 0.25, 0.25]
    for decay, parameters in snapshots:
        average = [decay * a + (1 - decay) * p for a, p in zip(average, parameters, strict=True)]
    saved = load_generator("checkpoints/tiny/psnr.safetensors").parameters()
    for expected, actual in zip(average, saved, strict=True):
        torch.testing.assert_close(actual.detach().double(), expected, rtol=0, atol=1e-7)


def test_a_new_generator_is_of_the_runs_seed(workplace, quick_curves, monkeypatch):
    still = ["--psnr.steps", "1", "--psnr.lr", "1e-30", "--gan.steps", "0", "--seed", "7"]
    run(monkeypatch, *still, data=("--train-dir", "photos"))
    torch.manual_seed(7)
    expected = RRDBNet(features=4, blocks=1, growth=4).state_dict()
    trained = safetensors.torch.load_file("checkpoints/tiny/psnr.safetensors")
    torch.testing.assert_close(trained, dict(expected), rtol=0, atol=1e-7)


def test_a_trained_file_has_the_settings_but_no_folder_of_this_machine(
    workplace, quick_curves, monkeypatch
):
    run(monkeypatch, "--psnr.steps", "2", "--gan.steps", "0")
    for name in ("psnr", "psnr_best"):
        with safetensors.safe_open(f"checkpoints/tiny/{name}.safetensors", "pt") as file:
            settings = json.loads(file.metadata()["config"])
            assert "photos" not in str(file.metadata())
        assert (settings["features"], settings["psnr"]["patch"]) == (4, 32)
        assert not {"name", "train_dir", "valid_dir"} & settings.keys()


def test_what_is_validated_and_kept_is_the_average(workplace, small_discriminator, monkeypatch):
    """As in the files that a phase ends with, of which the test above is."""
    judged, validate = [], training.validation.Validation.__call__

    def recording(validation, net, at):
        judged.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
        return validate(validation, net, at)

    monkeypatch.setattr(training.validation.Validation, "__call__", recording)
    run(monkeypatch, "--val-every", "10")  # at the end of each phase alone
    folder = workplace / "checkpoints" / "tiny"
    (kept,) = (folder / "generators").iterdir()
    files = (("psnr", folder / "psnr_best.safetensors"), ("gan", kept))
    for (phase, file), state in zip(files, judged, strict=True):
        expected = safetensors.torch.load_file(folder / f"{phase}.safetensors")
        for other in (safetensors.torch.load_file(file), state):
            torch.testing.assert_close(other, expected, rtol=0, atol=0)


@pytest.mark.parametrize("skipped, written", [("psnr", "gan"), ("gan", "psnr")])
def test_a_phase_of_no_steps_is_skipped(
    skipped, written, workplace, small_discriminator, monkeypatch
):
    run(monkeypatch, f"--{skipped}.steps", "0")
    names = {path.name for path in Path("checkpoints/tiny").glob("*.safetensors")}
    assert names - {"psnr_best.safetensors"} == {f"{written}.safetensors"}
    assert {row["phase"] for row in rows()} == {written}


@pytest.mark.parametrize(
    "flags",
    [["--psnr.steps", "0"], ["--psnr.adversarial", "1"], ["--degradation.level", "mild"]],
)
def test_what_should_not_start_from_random_weights_is_told(
    flags, workplace, small_discriminator, monkeypatch, capsys
):
    save_generator(RRDBNet(features=4, blocks=1, growth=4), "g.safetensors")
    for start, said in ((["--init-from", "g.safetensors"], False), ([], True)):
        name = ["--name", str(said), "--gan.steps", "1", *flags]
        run(monkeypatch, *name, *start)
        assert ("starts from random weights; --init-from" in capsys.readouterr().out) == said
    run(monkeypatch, *name)
    assert "random weights" not in capsys.readouterr().out  # it goes on


def test_a_flag_without_effect_is_told(workplace, small_discriminator, monkeypatch, capsys):
    run(monkeypatch, "--gan.steps", "0", "--gan.lr", "0.5", "--psnr.milestones", "3", "99")
    said = capsys.readouterr().out.splitlines()
    assert "gan.lr is 0.5: no effect, as gan.steps is 0" in said
    late = "psnr.milestones is (3, 99): the phase ends before 99, so psnr.lr does not halve"
    assert any(line.startswith(late) for line in said)
    assert not any(line.startswith("relativistic") for line in said)  # nobody asked for it
    run(monkeypatch, "--gan.steps", "0", "--gan.lr", "0.5", "--psnr.milestones", "3", "99")
    assert "no effect" not in capsys.readouterr().out


def test_training_without_validation_says_so(workplace, monkeypatch, capsys):
    run(monkeypatch, "--gan.steps", "0", data=("--train-dir", "photos"))
    assert "No validation: no images in data/valid" in capsys.readouterr().out
    assert all("psnr" not in row and row["losses"]["pixel"] > 0 for row in rows())
    assert Path("checkpoints/tiny/curves.png").exists()


def test_files_of_kinds_that_are_not_read_are_left_out_by_name(workplace, monkeypatch, capsys):
    Path("photos/x.CR2").write_bytes(b"II*\0\x10\0\0\0CR\2\0")
    Path("photos/dead.png").symlink_to("nowhere.png")
    run(monkeypatch, "--gan.steps", "0", data=("--train-dir", "photos"))
    output = capsys.readouterr().out
    assert output.count("Left out: ") == 2
    assert f"Left out: {Path('photos/x.CR2')}: a camera's raw file; develop it" in output
    assert f"Left out: {Path('photos/dead.png')}: a link that leads nowhere" in output


def test_without_images_nothing_is_downloaded_before_the_three_lines(workplace, monkeypatch):
    def fail(*args):
        raise AssertionError("VGG19 was asked for")

    monkeypatch.setattr(train, "load_vgg", fail)
    with pytest.raises(train.DataError) as error:
        run(monkeypatch, data=())
    assert len(str(error.value).splitlines()) == 3


def test_training_lowers_the_loss(workplace, small_discriminator, monkeypatch):
    longer = ["--psnr.steps", "40", "--gan.steps", "0", "--val-every", "1", "--psnr.lr", "3e-3"]
    run(monkeypatch, *longer, "--val-images", "1")
    losses = [row["losses"]["pixel"] for row in rows()]
    assert losses[-1] < 0.6 * losses[0]
    assert rows()[-1]["psnr"] > rows()[0]["psnr"] + 5


def test_the_discriminator_learns_to_tell_real_from_fake():
    config = Config(gan=Phase(patch=32, pixel=1.0, adversarial=1.0))
    net_g = RRDBNet(features=4, blocks=1, growth=4)
    learner = train.Learner(config, "gan", net_g, None, torch.float32, Ranks())
    net_d = learner.net_d
    torch.manual_seed(0)
    real, fake = torch.rand(8, 3, 1, 1).expand(8, 3, 32, 32), torch.rand(8, 3, 32, 32)

    def one_step():
        values = learner.update_discriminator([Crops(None, real, real)], [fake], lr=1e-4)
        learner.safe.update()
        return values

    values = [one_step() for _ in range(8)]
    losses = [value["discriminator"].item() for value in values]
    assert losses[0] == pytest.approx(2 * math.log(2), abs=0.4)  # it knows nothing yet
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        assert net_d(real).min() > net_d(fake).max()  # real is the positive side
    assert values[-1]["pairs right"] == 1
    assert values[-1]["D(real)"] > values[-1]["D(fake)"]


# ------------------------------------------------------------------------------------ exact resume


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the first test that needs a whole run leaves it for the others."""
    return tmp_path_factory.mktemp("kept") / "whole"


@pytest.fixture
def uninterrupted(workplace, small_discriminator, monkeypatch, kept):
    """The weights and the metrics of a whole run, which is in checkpoints/whole."""
    if not kept.exists():
        run(monkeypatch)
        shutil.move("checkpoints/tiny", kept)
    shutil.copytree(kept, "checkpoints/whole")
    return results("whole"), [untimed(row) for row in rows("whole")]


# The run has 5 + 4 steps and saves after 2, 4, 5 | 2, 4: in a phase, at the hand-over, at the end.
@pytest.mark.parametrize("count", [1, 2, 4, 6, 8, 9])
def test_a_killed_run_ends_with_the_same_weights(count, uninterrupted, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, count, die)
        with pytest.raises(Killed):
            run(patch)
    run(monkeypatch)
    weights, metrics = uninterrupted
    assert results() == weights
    assert [untimed(row) for row in rows()] == metrics


@pytest.mark.parametrize("count, number", [(1, 2), (5, 15), (7, 2), (9, 1)])
def test_a_stopped_run_saves_says_so_and_goes_on(count, number, uninterrupted, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, count, lambda: os.kill(os.getpid(), number))
        assert run(patch) == 128 + number
    assert "The same command goes on" in capsys.readouterr().out
    run(monkeypatch)
    assert results() == uninterrupted[0]


def test_a_run_that_goes_on_in_another_precision_says_so(
    workplace, small_discriminator, monkeypatch, capsys
):
    """`--precision auto` depends on the machine."""
    with monkeypatch.context() as patch:
        stop_at(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        run(patch, "--precision", "fp32")
    run(monkeypatch, "--precision", "fp32", "--psnr.steps", "2", "--gan.steps", "0")
    assert "computed in" not in capsys.readouterr().out
    run(monkeypatch, "--precision", "bf16", "--psnr.steps", "3", "--gan.steps", "0")
    assert "computed in torch.float32, and goes on in torch.bfloat16" in capsys.readouterr().out


def test_a_stop_after_the_last_step_leaves_the_finished_generator(uninterrupted, monkeypatch):
    """The signal comes while the last checkpoint of the PSNR phase is written."""
    save = training.runs.save_checkpoint

    def interrupted(path, state):
        if (state["phase"], state["step"]) == ("psnr", 5):
            os.kill(os.getpid(), signal.SIGINT)
        save(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(training.runs, "save_checkpoint", interrupted)
        assert run(patch) == 128 + signal.SIGINT
    assert Path("checkpoints/tiny/psnr.safetensors").read_bytes() == uninterrupted[0][0]
    run(monkeypatch)
    assert results() == uninterrupted[0]


def test_memory_that_runs_out_at_a_resume_is_not_the_checkpoints_fault(
    workplace, small_discriminator, monkeypatch
):
    run(monkeypatch, "--psnr.steps", "2", "--gan.steps", "0")
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    for owner in (torch.optim.Adam, RRDBNet):
        with monkeypatch.context() as patch:
            patch.setattr(owner, "load_state_dict", Mock(side_effect=full))
            with pytest.raises(torch.OutOfMemoryError, match=r"20\.00 MiB"):
                run(patch, "--psnr.steps", "4", "--gan.steps", "0")


def test_processes_are_compared_before_anything_is_written(workplace, monkeypatch):
    refusing = Mock(side_effect=train.DeviceError("unlike"))
    monkeypatch.setattr(train, "refuse_unlike_ranks", refusing)
    with pytest.raises(train.DeviceError, match="unlike"):
        run(monkeypatch)
    config, at, device, dtype, images, ranks = refusing.call_args.args
    assert (config.name, at, ranks.count) == ("tiny", At("psnr", 0), 1) and len([*images]) == 1
    assert device == torch.device("cpu") and dtype == train.choose_precision(
        config.precision, device
    )
    assert not list(Path("checkpoints").rglob("config.json"))


def test_what_the_device_cannot_do_is_refused_before_anything_is_written(workplace, monkeypatch):
    """As on a Mac, where fp16 has no scaled loss."""
    monkeypatch.setattr(train, "choose_device", lambda name, local: torch.device("mps"))
    with pytest.raises(train.DeviceError, match="precision is 'fp16': MPS has no scaled loss"):
        run(monkeypatch, "--precision", "fp16")
    assert not list(Path("checkpoints").rglob("config.json"))


def test_other_ranks_draw_no_bars(workplace, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "train", lambda run, given: seen.append(Bar.silent) or 7)
    monkeypatch.setattr(Bar, "silent", False)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    for rank in (0, 1):
        monkeypatch.setattr(Ranks, "of_torchrun", lambda rank=rank: Ranks(rank=rank))
        assert run(monkeypatch) == 7
    assert seen == [False, True]


def test_what_does_not_fit_in_a_checkpoint_is_named(workplace, small_discriminator, monkeypatch):
    run(monkeypatch, "--psnr.steps", "2", "--gan.steps", "0")
    state = torch.load("checkpoints/tiny/last.pt", weights_only=True)
    state["opt_g"]["param_groups"][0]["params"].pop()
    torch.save(state, "checkpoints/tiny/last.pt")
    with pytest.raises(train.CheckpointError, match=r"last\.pt does not fit .*its opt_g: "):
        run(monkeypatch)


SRGAN = [
    *("--generator", "srresnet", "--batch-norm", "true", "--relativistic", "false"),
    *("--squared-error", "true", "--vgg-before-activation", "false"),
]


def test_srgan_trains_goes_on_and_its_files_load(workplace, small_discriminator, monkeypatch):
    run(monkeypatch, *SRGAN)
    weights = results()
    Path("checkpoints/tiny").rename("checkpoints/whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 7, die)
        with pytest.raises(Killed):
            run(patch, *SRGAN)
    run(monkeypatch, *SRGAN)
    assert results() == weights
    nets = [load_generator(f"checkpoints/tiny/{name}") for name in ("gan.safetensors", "last.pt")]
    low_res = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        assert torch.equal(nets[0](low_res), nets[1](low_res))
    # What the average is for: its batch norm uses statistics that training gathered.
    assert isinstance(nets[0], SRResNet) and nets[0].bn_body.running_mean.any()


UNET = [
    *("--discriminator", "unet", "--discriminator-features", "4", "--relativistic", "false"),
    *("--vgg-layer", "conv1_2:0.1,conv2_2:1", "--degradation.level", "strong"),
    *("--degradation.sharpen", "true", "--psnr.steps", "2", "--gan.steps", "3"),
]


def test_a_unet_on_degraded_crops_goes_on_exactly_and_starts_other_runs(
    workplace, quick_curves, monkeypatch, capsys
):
    """The estimates of the spectral norm, which each pass moves, are part of the checkpoint."""
    run(monkeypatch, *UNET, "--save-every", "1")
    weights, last = results(), load_checkpoint("checkpoints/tiny/last.pt")
    assert {"conv0.weight", "conv1.weight_orig", "conv8.weight_u"} <= last["net_d"].keys()
    Path("checkpoints/tiny").rename("checkpoints/whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 4, die)
        with pytest.raises(Killed):
            run(patch, *UNET, "--save-every", "1")
    run(monkeypatch, *UNET, "--save-every", "1")
    assert results() == weights
    again = load_checkpoint("checkpoints/tiny/last.pt")["net_d"]
    assert all(torch.equal(again[name], tensor) for name, tensor in last["net_d"].items())
    assert 0 <= rows()[-1]["pairs right"] <= 1

    # The first step's rate is so low that the discriminator ends as what it started from.
    others = ["--psnr.steps", "0", "--gan.steps", "1", "--gan.lr", "1e-30", "--name", "third"]
    start = ["--init-discriminator", "checkpoints/whole/last.pt"]
    capsys.readouterr()
    run(monkeypatch, *UNET, *others, *start)
    assert "gan phase starts from checkpoints/whole/last.pt" in capsys.readouterr().out
    third = load_checkpoint("checkpoints/third/last.pt")["net_d"]
    assert torch.equal(third["conv5.weight_orig"], last["net_d"]["conv5.weight_orig"])
    Path("checkpoints/whole/last.pt").unlink()
    run(monkeypatch, *UNET, *others, *start)  # over, and so is the need of the file
    with pytest.raises(train.WeightsError, match="no such file"):
        run(monkeypatch, *UNET, *start, "--name", "fourth")
    assert not Path("checkpoints/fourth").exists()


def test_a_start_that_cannot_be_read_changes_nothing(workplace, small_discriminator, monkeypatch):
    """It is found before earlier results, of which it may be one, are moved away."""
    run(monkeypatch, "--gan.steps", "0")
    Path("checkpoints/tiny/last.pt").unlink()
    packs = [*Path().rglob("esrgan-packed*")]
    assert packs
    for pack in packs:
        pack.unlink()
    before = sorted(Path("checkpoints").rglob("*"))
    for name in ("tiny", "fresh"):
        start = ["--name", name, "--psnr.steps", "0", "--init-from", "checkpoints/tiny/pnsr.pth"]
        with pytest.raises(train.WeightsError, match="no such file"):
            run(monkeypatch, *start)
    locks = {Path("checkpoints/.fresh.lock")}
    assert {*Path("checkpoints").rglob("*")} - locks == {*before}
    assert not [*Path().rglob("esrgan-packed*")]


def test_an_unshuffling_generator_trains_from_a_file_of_its_kind(
    workplace, small_discriminator, monkeypatch
):
    """RealESRGAN_x2plus is one: scale 2, with squares of 2x2 pixels folded into channels."""
    torch.manual_seed(5)
    given = RRDBNet(scale=2, features=4, blocks=1, growth=4, unshuffle=2)
    save_generator(given, "x2plus.pth")
    start = ["--init-from", "x2plus.pth", "--scale", "2", "--gan.steps", "1", "--psnr.steps", "1"]
    with pytest.raises(train.WeightsError, match="add --unshuffle 2"):
        run(monkeypatch, *start)
    run(monkeypatch, *start, "--unshuffle", "2", "--psnr.lr", "1e-30", "--gan.lr", "1e-30")
    trained = load_generator("checkpoints/tiny/gan.safetensors")
    assert (trained.scale, trained.unshuffle) == (2, 2)
    for name, tensor in given.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale, unshuffle", [(2, 2), (1, 4)])
def test_networks_like_real_esrgans_go_on_with_their_discriminator(
    scale, unshuffle, workplace, quick_curves, monkeypatch, capsys
):
    """As docs/training.md says it of RealESRGAN_x2plus, with the files as their programs save them:
    what comes out after steps of next to no size is what went in."""
    torch.manual_seed(5)
    given = RRDBNet(scale=scale, features=4, blocks=1, growth=4, unshuffle=unshuffle)
    judge = UNetDiscriminator(features=4)
    torch.save({"params_ema": given.state_dict()}, "plus.pth")
    torch.save({"params": judge.state_dict()}, "netD.pth")
    start = ["--scale", f"{scale}", "--unshuffle", f"{unshuffle}", "--init-from", "plus.pth"]
    start += ["--init-discriminator", "netD.pth", "--discriminator-features", "4"]
    small = ["--psnr.steps", "0", "--gan.steps", "1", "--gan.lr", "1e-30", "--gan.milestones"]
    run(monkeypatch, "--preset", "real", *start, *small, "--vgg-layer", "conv1_2:0.1,conv2_2:1")
    assert "gan phase starts from netD.pth" in capsys.readouterr().out
    trained = load_generator("checkpoints/tiny/gan.safetensors")
    assert (trained.scale, trained.unshuffle) == (scale, unshuffle)
    for name, tensor in given.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, rtol=0, atol=1e-7)
    kept = load_checkpoint("checkpoints/tiny/last.pt")["net_d"]
    assert torch.equal(kept["conv5.weight_orig"], judge.state_dict()["conv5.weight_orig"])
    config = json.loads(Path("checkpoints/tiny/config.json").read_text())
    assert config["degradation"]["sharpen"] and config["discriminator"] == "unet"


def test_a_preset_starts_from_the_box_wherever_it_is_run(workplace):
    config = parse_args(["--preset", "compact-real"])
    generator = train.build_generator(config)
    assert not init_generator(generator, config.init_from)[1]


def test_a_run_killed_while_saving_goes_on(uninterrupted, monkeypatch):
    save, calls = torch.save, []

    def dying(state, file):
        calls.append(1)
        if len(calls) == 4:
            file.write(b"half a checkpoint")
            raise Killed
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", dying)
        with pytest.raises(Killed):
            run(patch)
    run(monkeypatch)
    assert results() == uninterrupted[0]
    # The row of the validation before the save is not there twice.
    assert [untimed(row) for row in rows()] == uninterrupted[1]


def test_a_second_ctrl_c_during_the_saving_loses_nothing(
    workplace, small_discriminator, monkeypatch
):
    stop_at(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGINT))
    save = training.runs.save_checkpoint

    def pressed_again(*args):
        signal.raise_signal(signal.SIGINT)
        save(*args)

    monkeypatch.setattr(training.runs, "save_checkpoint", pressed_again)
    assert run(monkeypatch) == 128 + signal.SIGINT
    assert load_checkpoint(Path("checkpoints/tiny/last.pt"))["step"] == 1


def test_a_phase_that_is_over_needs_no_crops_of_its_size(
    workplace, small_discriminator, random_image, monkeypatch
):
    flags = ("--psnr.patch", "48", "--psnr.steps", "1")
    run(monkeypatch, *flags, "--gan.steps", "1")
    write_image(random_image(40, 40), workplace / "small/a.png")  # enough for gan.patch 32
    run(monkeypatch, *flags, "--gan.steps", "2", "--train-dir", "small")
    assert load_checkpoint(Path("checkpoints/tiny/last.pt"))["run_step"] == 3


def test_a_phase_that_is_at_its_end_needs_no_crops_either(
    workplace, small_discriminator, random_image, monkeypatch
):
    """With its last step done, only its file may be left to write."""
    flags = ("--psnr.patch", "48", "--psnr.steps", "1")
    run(monkeypatch, *flags, "--gan.steps", "0")
    file = workplace / "checkpoints/tiny/psnr.safetensors"
    before = safetensors.torch.load_file(file)
    file.unlink()
    write_image(random_image(40, 40), workplace / "small/a.png")  # enough for gan.patch 32
    run(monkeypatch, *flags, "--gan.steps", "2", "--train-dir", "small")
    assert load_checkpoint(Path("checkpoints/tiny/last.pt"))["run_step"] == 3
    torch.testing.assert_close(safetensors.torch.load_file(file), before, rtol=0, atol=0)


def test_a_finished_run_does_nothing_more_and_can_be_made_longer(uninterrupted, monkeypatch):
    Path("checkpoints/whole").rename("checkpoints/tiny")
    run(monkeypatch)
    assert results() == uninterrupted[0]
    run(monkeypatch, "--gan.steps", "6")
    assert [(row["phase"], row["step"]) for row in rows()][-1] == ("gan", 6)


def test_dropping_the_psnr_phase_later_keeps_what_it_learned(
    workplace, small_discriminator, monkeypatch
):
    run(monkeypatch, "--gan.steps", "0")
    run(monkeypatch, "--psnr.steps", "0", "--gan.lr", "1e-30")
    psnr, gan = (load_generator(f"checkpoints/tiny/{name}.safetensors") for name in ("psnr", "gan"))
    torch.testing.assert_close(gan.state_dict(), psnr.state_dict(), rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_sigkill_at_twenty_random_moments_changes_nothing():
    script = ROOT / "tests" / "kill_and_resume.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs identical 20, checkpoints unreadable 0" in done.stdout


@pytest.fixture
def train_until_the_first_checkpoint(workplace):
    """Starts a process of its own, with two workers, that goes on for long."""
    started = []

    def train_until(**options):
        data = ["--train-dir", "photos", "--workers", "2", "--psnr.steps", "100000"]
        command = [sys.executable, str(ROOT / "train.py"), *TINY, *data, "--gan.steps", "0"]
        process = subprocess.Popen(command, text=True, **options)
        started.append(process)
        wait_until(Path("checkpoints/tiny/last.pt").exists, process)
        return process

    yield train_until
    for process in started:  # whatever has failed, nothing of it goes on
        process.kill()
        process.wait()


def wait_until(done, process):
    deadline = time.monotonic() + 300
    while not done():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_run_with_workers_ends_and_so_do_they(workplace):
    data = ["--train-dir", "photos", "--valid-dir", "photos", "--workers", "2"]
    unet = ["--discriminator", "unet", "--discriminator-features", "4"]
    command = [sys.executable, str(ROOT / "train.py"), *TINY, *data, *unet]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Upscale a folder" in done.stdout


FAULTY = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import train, training.log, training.monitor, training.runs, training.validation
def fault(*arguments, **others):
    print("FAULT", file=sys.stderr, flush=True)
    raise LookupError("of no kind that train.py knows")
if __name__ == "__main__":
    owner, name = sys.argv.pop(1).rsplit(".", 1)
    setattr(eval(owner), name, fault)
    train.run_as_program()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        "train.Learner.update_generator",
        "training.validation.labelled_strip",
        "training.log.draw_curves",  # after matplotlib, whose cycles hold the frames of its callers
        "training.runs.save_checkpoint",
    ],
)
def test_any_error_ends_a_run_with_workers_within_seconds(place, workplace):
    (workplace / "faulty.py").write_text(FAULTY)
    data = ["--train-dir", "photos", "--valid-dir", "photos", "--workers", "2"]
    command = [sys.executable, "faulty.py", place, *TINY, *data, "--gan.steps", "0"]
    with open("errors.txt", "w") as file:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
    errors = Path("errors.txt")
    try:
        wait_until(lambda: "FAULT" in errors.read_text(), process)
        assert process.wait(timeout=120) == 1
    finally:
        process.kill()
    assert "Traceback" in errors.read_text()
    assert "LookupError: of no kind that train.py knows" in errors.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads Linux's /proc")
def test_sigkill_of_a_run_leaves_no_worker(train_until_the_first_checkpoint):
    process = train_until_the_first_checkpoint(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.kill()
    for child in children:
        assert ends(child)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_worker_that_dies_is_reported_with_its_cause(train_until_the_first_checkpoint):
    process = train_until_the_first_checkpoint(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "a process that cuts crops died" in errors
    # By who looks first: torch's handler of signals, its check of workers, or whoever read from it.
    causes = ("Killed", "exited unexpectedly", "Connection re", "Broken pipe", "EOFError")
    assert any(cause in errors for cause in causes)
    # The handler raises wherever Python is; in a __del__ that is told, and goes no further.
    assert errors.count("Traceback") == errors.count("Exception ignored in")


@pytest.mark.parametrize(
    "error, cause",
    [
        (ConnectionResetError(104, "Connection reset by peer"), "[Errno 104] Connection reset"),
        (ConnectionRefusedError(111, "Connection refused"), "[Errno 111] Connection refused"),
        (BrokenPipeError(32, "Broken pipe"), "[Errno 32] Broken pipe"),
        (EOFError(), "EOFError"),
        (RuntimeError("Pin memory thread exited unexpectedly"), "Pin memory thread exited"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "DataLoader w"),
    ],
)
def test_a_worker_that_dies_while_a_batch_is_on_its_way_is_named(error, cause, monkeypatch):
    monkeypatch.setattr(train, "main", Mock(side_effect=error))
    with pytest.raises(SystemExit, match=re.escape(f"cuts crops died: {cause}")) as stop:
        train.run_as_program()
    assert ". Most often memory ran out" in stop.value.code
    assert stop.value.code.endswith("What was saved is kept, and the run goes on from there.")


def reraised(failing):
    """What torch's loader raises for an error in a worker."""
    try:
        failing()
    except Exception:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(Exception, match=r"^Caught ") as caught:
        wrapped.reraise()
    return caught.value


def without_shared_memory():
    # torch's words where /dev/shm of a container is full
    raise RuntimeError(
        "unable to allocate shared memory(shm) for file </torch_7_8_9>: Resource temporarily "
        "unavailable (11)"
    )


class OfTheCompiler(RuntimeError):
    __module__ = "torch._dynamo.exc"


OUT_OF_SHARED_MEMORY = (
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
    "workers are out of shared memory. Please try to raise your shared memory limit."
)


def many_files():
    raise RuntimeError("Too many open files. Communication with the workers is no longer possible.")


@pytest.mark.parametrize(
    "error, words",
    [
        (reraised(without_shared_memory), "processes share ran out (RuntimeError: unable to all"),
        (reraised(lambda: np.empty(2**56, np.uint8)), "memory ran out (numpy"),
        (reraised(lambda: cv2.resize(np.zeros((1, 1)), (2**30, 2**30))), "memory ran out (cv2.e"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory ran out ([Errno"),
        (reraised(many_files), "possible. Raise the limit (ulimit -n"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files. Raise the limit"),
        (
            OfTheCompiler("backend='inductor' raised:\nRuntimeError: no gcc"),
            "fails here (RuntimeError: no gcc): leave out --compile",
        ),
        (RuntimeError(OUT_OF_SHARED_MEMORY), "processes share ran out (DataLoader worker"),
    ],
)
def test_faults_of_the_machine_are_said_with_what_to_do(error, words, monkeypatch):
    monkeypatch.setattr(train, "main", Mock(side_effect=error))
    with pytest.raises(SystemExit, match=re.escape(words)) as stop:
        train.run_as_program()
    assert "\n" not in stop.value.code


def test_a_kill_before_the_first_step_tidies_up(monkeypatch):
    prepared = Mock()
    monkeypatch.setattr(train, "hear_kill", prepared)
    monkeypatch.setattr(train, "main", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit, match="interrupted"):
        train.run_as_program()
    prepared.assert_called_once_with()


def test_other_errors_of_files_are_said_in_a_line_and_those_of_the_program_are_shown(monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device", "last.pt")
    monkeypatch.setattr(train, "main", Mock(side_effect=full))
    with pytest.raises(SystemExit, match=r"^train.py: .*No space left on device: 'last.pt'$"):
        train.run_as_program()
    monkeypatch.setattr(train, "main", Mock(side_effect=RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        train.run_as_program()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="process groups are POSIX")
def test_ctrl_c_in_a_terminal_stops_a_run_with_workers(train_until_the_first_checkpoint):
    """A terminal sends it to the workers too; they must live until the step is done."""
    process = train_until_the_first_checkpoint(
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)  # an impatient second time
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGINT, output
    assert "all is saved" in output
    assert "Stopped and saved" in output and "Traceback" not in output


# ---------------------------------------------------------------------------------------- bad input


def test_another_networks_checkpoint_is_refused_by_field(
    workplace, small_discriminator, monkeypatch, capsys
):
    run(monkeypatch)
    before = Path("checkpoints/tiny/last.pt").read_bytes()
    for field, value in (("features", "8"), ("scale", "2"), ("seed", "1"), ("gan.patch", "64")):
        with pytest.raises(train.CheckpointError, match=rf"{field} .*, not {value}"):
            run(monkeypatch, f"--{field}", value, "--gan.steps", "6")
    assert Path("checkpoints/tiny/last.pt").read_bytes() == before
    run(monkeypatch, "--gan.steps", "6")
    assert "gan.steps was 4, is 6" in capsys.readouterr().out


def test_a_phase_that_has_begun_keeps_its_discriminator(
    workplace, small_discriminator, monkeypatch
):
    run(monkeypatch, "--gan.steps", "2")
    with pytest.raises(train.CheckpointError, match=r"gan.adversarial 0.005, not 0.0: give that"):
        run(monkeypatch, "--gan.steps", "6", "--gan.adversarial", "0")
    run(monkeypatch, "--gan.steps", "4", "--gan.adversarial", "0.01")
    run(monkeypatch, "--gan.steps", "4", "--gan.adversarial", "0")  # it is over: no effect
    run(monkeypatch, "--name", "none", "--gan.steps", "2", "--gan.adversarial", "0")
    with pytest.raises(train.CheckpointError, match=r"gan.adversarial 0.0, not 0.005: give that"):
        run(monkeypatch, "--name", "none", "--gan.steps", "6")


def test_a_phase_that_has_not_begun_may_change_and_one_that_is_over_says_no_effect(
    workplace, small_discriminator, monkeypatch, capsys
):
    run(monkeypatch, "--gan.steps", "0")
    run(monkeypatch, "--gan.patch", "64", "--gan.steps", "2", "--psnr.lr", "1e-3")
    said = capsys.readouterr().out
    assert "gan.patch was 32, is 64\n" in said
    assert "psnr.lr was 0.0002, is 0.001: no effect, as the psnr phase is over" in said
    weights = results()
    # Steps of a phase that is past, more or fewer, and fewer than are done of the last one.
    changes = ["--psnr.steps", "50", "--gan.steps", "1", "--init-from", "nowhere.pth"]
    run(monkeypatch, "--gan.patch", "64", *changes)
    said = capsys.readouterr().out
    assert "psnr.steps was 5, is 50: no effect, as the psnr phase is over" in said
    assert "gan.steps was 2, is 1: 2 are done, and the phase ends there" in said
    assert "init_from was '', is 'nowhere.pth': no effect, as the run has its own" in said
    assert (
        results() == weights and "nowhere" not in Path("checkpoints/tiny/config.json").read_text()
    )
    settings = json.loads(Path("checkpoints/tiny/config.json").read_text())
    assert (settings["psnr"]["steps"], settings["psnr"]["lr"]) == (5, 2e-4)
    assert settings["gan"]["steps"] == 2


@pytest.mark.parametrize("steps, done", [("5", 5), ("2", 4), ("0", 4)])
def test_no_sample_is_seen_twice_or_left_out_when_the_psnr_phase_is_cut_short(
    steps, done, workplace, small_discriminator, monkeypatch
):
    ranges, batches = [], train.batches

    def recording(stream, start, stop, *args, **kwargs):
        ranges.append((start, stop))
        return batches(stream, start, stop, *args, **kwargs)

    with monkeypatch.context() as patch:
        stop_at(patch, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert run(patch) == 128 + signal.SIGINT
    monkeypatch.setattr(train, "batches", recording)
    run(monkeypatch, "--psnr.steps", steps)
    assert ranges == ([(4, 5)] if done == 5 else []) + [(done, done + 4)]
    assert [row["run_step"] for row in rows()] == sorted({row["run_step"] for row in rows()})
    assert rows()[-1]["run_step"] == done + 4
    last = torch.load("checkpoints/tiny/last.pt", weights_only=True)
    assert (last["before"], last["run_step"]) == (done, done + 4)
    with safetensors.safe_open("checkpoints/tiny/psnr.safetensors", "pt") as file:
        assert file.metadata()["step"] == str(done)


def test_files_left_out_are_listed_before_the_first_step(
    workplace, small_discriminator, monkeypatch, capsys, random_image
):
    (workplace / "photos" / "text.png").write_text("no picture")
    write_image(random_image(20, 20), workplace / "photos" / "small.png")
    run(monkeypatch, "--gan.steps", "0")
    output = capsys.readouterr().out
    small = "Left out of the psnr phase: 1 of 5 images, smaller than its 32x32 crop: photos"
    assert output.index(f"{small}/small.png (20x20)") < output.index("parameters")
    assert "text.png" in output


def test_a_step_that_is_not_finite_is_skipped_named_and_counted(
    workplace, small_discriminator, monkeypatch, capsys
):
    spoil(monkeypatch, {3, 7})
    run(monkeypatch)
    output = capsys.readouterr().out
    assert "psnr 3: 1 of 1 steps skipped, not finite: pixel (1), generator gradient (1)" in output
    assert "gan 2: 1 of 1 steps skipped, not finite: pixel (1)" in output
    last = torch.load("checkpoints/tiny/last.pt", weights_only=True)
    for key in ("net_g", "net_d", "ema"):
        assert all(tensor.isfinite().all() for tensor in last[key].values())
    assert {int(state["step"]) for state in last["opt_g"]["state"].values()} == {3}


def test_too_many_skipped_steps_in_a_row_stop_the_run_and_keep_the_checkpoint(
    workplace, small_discriminator, monkeypatch
):
    run(monkeypatch, "--psnr.steps", "2", "--gan.steps", "0")
    before = Path("checkpoints/tiny/last.pt").read_bytes()
    spoil(monkeypatch, range(1, 100))
    with pytest.raises(train.TrainingError, match=r"3 steps in a row.*pixel.*--psnr.lr"):
        run(monkeypatch, "--psnr.steps", "20", "--gan.steps", "0", "--max-skipped", "3")
    assert Path("checkpoints/tiny/last.pt").read_bytes() == before


def test_weights_that_blow_up_stop_the_run_and_keep_the_checkpoint(
    workplace, small_discriminator, monkeypatch
):
    run(monkeypatch, "--psnr.steps", "2", "--gan.steps", "0")
    before = Path("checkpoints/tiny/last.pt").read_bytes()
    with pytest.raises(train.TrainingError, match=r"not finite|no longer finite"):
        run(
            monkeypatch,
            *("--psnr.steps", "99", "--gan.steps", "0", "--psnr.lr", "1e30"),
            *("--max-skipped", "3", "--save-every", "50"),
        )
    assert Path("checkpoints/tiny/last.pt").read_bytes() == before


def test_statistics_that_are_not_finite_keep_the_checkpoint():
    ema, run = SRResNet(features=4, blocks=1), RunFolder(Config(), Ranks())
    run.refuse_broken(ema, At("psnr", 1))
    ema.bn_body.running_var[0] = math.nan
    with pytest.raises(train.TrainingError, match="psnr step 1"):
        run.refuse_broken(ema, At("psnr", 1))


def test_a_second_run_in_the_same_folder_is_refused_by_name(workplace, monkeypatch):
    config = train.parse_args([*TINY, "--train-dir", "photos"])
    with (
        RunFolder(config, Ranks()),
        pytest.raises(train.DeviceError, match=r"another process is training checkpoints.tiny"),
        RunFolder(config, Ranks()),
    ):
        pass


def test_a_run_goes_on_when_packed_images_vanish(uninterrupted, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 3, die)
        with pytest.raises(Killed):
            run(patch)
    (Path("photos") / "b.png").unlink()
    run(monkeypatch)
    assert results() == uninterrupted[0]
    assert "images are gone since they were packed (b.png)" in capsys.readouterr().out
    run(monkeypatch, "--name", "new", "--psnr.steps", "1", "--gan.steps", "0")
    assert "are gone" not in capsys.readouterr().out


def test_a_disk_without_room_for_tensorboard_changes_no_weight(uninterrupted, monkeypatch, capsys):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training.log.RecordWriter, "write", full)
    run(monkeypatch)
    assert results() == uninterrupted[0] and len(rows()) == len(uninterrupted[1])
    assert capsys.readouterr().out.count("TensorBoard's curves end here: ") == 1


def test_a_new_run_puts_aside_what_one_of_its_name_has_left(uninterrupted, monkeypatch, capsys):
    whole, tiny = Path("checkpoints/whole"), Path("checkpoints/tiny")
    whole.rename(tiny)
    (tiny / "last.pt").unlink()
    before = {path.name for path in tiny.rglob("*") if path.is_file()}
    run(monkeypatch, "--gan.steps", "2")
    assert "they are in checkpoints/tiny/earlier-1 now" in capsys.readouterr().out.replace(
        "\\", "/"
    )
    earlier = {path.name for path in (tiny / "earlier-1").rglob("*") if path.is_file()}
    assert earlier == before
    assert [path.name for path in (tiny / "generators").iterdir()] == ["gan_0000002.safetensors"]
    assert len(rows()) == 4


@pytest.mark.parametrize(
    "changes",
    [
        ["--valid-dir", "others"],
        ["--valid-lr-dir", "low"],
        ["--val-images", "1"],
        ["--degradation.level", "mild"],
    ],
)
def test_the_best_generator_is_of_the_last_validation_images(
    changes, workplace, small_discriminator, monkeypatch, capsys, random_image
):
    for name in ("a", "b", "c", "sub/d"):
        picture = read_image(next(Path("photos").glob(f"{name}.*")))
        (workplace / "others/sub").mkdir(parents=True, exist_ok=True)
        (workplace / "low/sub").mkdir(parents=True, exist_ok=True)
        write_image(random_image(64, 64), workplace / "others" / f"{name}.png")
        write_image(picture[2::4, 2::4], workplace / "low" / f"{name}.png")
    run(monkeypatch, "--psnr.steps", "2", "--gan.steps", "0")
    # As if the network had been better on the images of before than on any others.
    path = Path("checkpoints/tiny/metrics.jsonl")
    path.write_text(json.dumps(rows()[0] | {"psnr": 99.0}) + "\n")

    def best():
        with safetensors.safe_open("checkpoints/tiny/psnr_best.safetensors", "pt") as file:
            return file.metadata()["step"]

    run(monkeypatch, "--psnr.steps", "4", "--gan.steps", "0")
    assert best() == "2" and "images have changed" not in capsys.readouterr().out
    run(monkeypatch, "--psnr.steps", "6", "--gan.steps", "0", *changes)
    assert best() == "6"
    assert capsys.readouterr().out.count("images have changed by psnr step 6") == 1


# --------------------------------------------------------------- memory, precision, fine-tuning


def test_accumulated_parts_train_as_the_whole_batch_does(
    workplace, small_discriminator, monkeypatch
):
    for parts in (1, 2, 4):
        flags = ["--name", f"in{parts}", "--accumulate", str(parts), "--batch-size", "4"]
        run(monkeypatch, *flags, "--gan.steps", "0")
    whole, *others = (
        safetensors.torch.load_file(f"checkpoints/in{parts}/psnr.safetensors")
        for parts in (1, 2, 4)
    )
    for other in others:
        torch.testing.assert_close(other, whole, rtol=0, atol=2e-6)


def test_recomputing_blocks_changes_memory_not_weights(workplace, small_discriminator, monkeypatch):
    run(monkeypatch, "--gan.steps", "0")
    run(monkeypatch, "--gan.steps", "0", "--name", "again", "--recompute", "true")
    plain, again = (
        safetensors.torch.load_file(f"checkpoints/{name}/psnr.safetensors")
        for name in ("tiny", "again")
    )
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_both_phases_run_in_half_precision(precision, workplace, small_discriminator, monkeypatch):
    run(monkeypatch, "--precision", precision)
    assert rows()[-1]["step"] == 4
    scaler = torch.load("checkpoints/tiny/last.pt", weights_only=True)["scaler"]
    assert ("scale" in scaler) == (precision == "fp16")


def test_a_run_starts_from_a_file_and_lists_what_does_not_fit(
    workplace, small_discriminator, monkeypatch, capsys
):
    torch.manual_seed(5)
    given = RRDBNet(scale=2, features=4, blocks=1, growth=4)
    save_generator(given, "x2.safetensors")
    still = ["--gan.steps", "0", "--psnr.lr", "1e-30", "--init-from", "x2.safetensors"]
    run(monkeypatch, *still, "--scale", "4")
    assert "starting at random: conv_up2.bias, conv_up2.weight" in capsys.readouterr().out
    trained = load_generator("checkpoints/tiny/psnr.safetensors").state_dict()
    for name, tensor in given.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-7)
    run(monkeypatch, *still, "--scale", "1", "--name", "x1")
    assert "not in this network: conv_up1.bias, conv_up1.weight" in capsys.readouterr().out


def test_starting_from_a_network_in_the_box(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = RRDBNet(features=32, blocks=4)
    train.start_from(net, "compact_x4_psnr")
    assert capsys.readouterr().out == "Starting from compact_x4_psnr\n"
    named = safetensors.torch.load_file(ROOT / "checkpoints" / "compact_x4_psnr.safetensors")
    assert net.state_dict().keys() == named.keys()
    for name, tensor in named.items():
        assert torch.equal(net.state_dict()[name], tensor.float())


@pytest.mark.parametrize(
    "network, words",
    [
        (dict(features=8), "features 8, not 4"),
        (dict(growth=8), "growth 8, not 4"),
        (dict(blocks=2), "blocks 2, not 1"),
    ],
)
def test_starting_from_another_network_is_refused(network, words, workplace, monkeypatch):
    save_generator(RRDBNet(**(dict(features=4, blocks=1, growth=4) | network)), "g.safetensors")
    with pytest.raises(train.WeightsError, match=words):
        run(monkeypatch, "--init-from", "g.safetensors")


# ------------------------------------------------------------------------------------- choosing


def test_the_best_of_the_psnr_phase_and_the_last_of_the_gan_phase_are_kept(
    workplace, small_discriminator, monkeypatch
):
    scores = iter([20.0, 25.0, 22.0, 1.0, 1.0, 1.0, 1.0])

    def validate(self, net, at):
        return {"psnr": next(scores), "ssim": 0.5, "bicubic_psnr": 21.0, "bicubic_ssim": 0.5}

    monkeypatch.setattr(training.validation.Validation, "__call__", validate)
    run(monkeypatch, "--gan.steps", "8", "--keep-generators", "2")
    with safetensors.safe_open("checkpoints/tiny/psnr_best.safetensors", "pt") as file:
        assert (file.metadata()["step"], file.metadata()["psnr"]) == ("4", "25.0")
    kept = sorted(path.name for path in Path("checkpoints/tiny/generators").iterdir())
    assert kept == ["gan_0000006.safetensors", "gan_0000008.safetensors"]


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "args, words",
    [
        ([], ["data/train", "--train-dir", "dataset.py div2k", "--preset demo"]),
        (["--train-dir", "nowhere"], ["nowhere: no such folder"]),
        (["--train-dir", "empty"], ["empty holds no PNG"]),
        (["--train-dir", "only text"], ["no training image", "x.png"]),
        (["--train-dir", "only cut"], ["no training image", "x.png"]),
        (["--train-dir", "only dot"], ["no training image", "x.png"]),
        (["--train-dir", "photos", "--vgg-layer", "conv6_1"], ["vgg_layer", "conv6_1"]),
        (["--train-dir", "photos", "--init-discriminator", "d.pth"], ["d.pth", "no such file"]),
        (["--train-dir", "photos", "--valid-dir", "nowhere"], ["nowhere: no such folder"]),
        (["--train-dir", "photos", "--psnr.patch", "128"], ["no training image", "128x128"]),
        (["--train-dir", "photos", "--lr-dir", "empty"], ["empty holds no PNG"]),
        (["--train-dir", "photos", "--lr-dir", "low"], ["no LR image", "b.png"]),
        (["--train-dir", "photos", "--vgg-weights", "none.pth"], ["none.pth", "no such file"]),
        (["--train-dir", "photos", "--name", "text"], ["text/last.pt", "cannot be read"]),
        (["--train-dir", "photos", "--name", "file"], ["checkpoints/file"]),
        (["--scale", "5"], ["scale is 5"]),
        (["--psnr.lr", "abc"], ["--psnr.lr", "abc"]),
        (["--preset", "nope"], ["nope", "demo"]),
        (["--bogus", "1"], ["--bogus"]),
    ],
)
def test_bad_input_is_one_clear_error_and_never_a_traceback(
    args, words, workplace, random_image, monkeypatch, capsys
):
    (workplace / "empty").mkdir()
    (workplace / "low").mkdir()
    (workplace / "low" / "a.png").write_bytes((workplace / "photos" / "a.png").read_bytes())
    (workplace / "checkpoints" / "text").mkdir(parents=True)
    (workplace / "checkpoints" / "text" / "last.pt").write_text("no checkpoint")
    (workplace / "checkpoints" / "file").write_text("in the way")
    for kind in ("text", "cut", "dot"):
        (workplace / f"only {kind}").mkdir()
    (workplace / "only text" / "x.png").write_text("no picture")
    cut = (workplace / "photos" / "a.png").read_bytes()[:300]
    (workplace / "only cut" / "x.png").write_bytes(cut)
    write_image(random_image(1, 1), workplace / "only dot" / "x.png")
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, *args])
    # Anything but SystemExit would be a traceback.
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    captured = capsys.readouterr()
    output = captured.out + captured.err + str(exit.value.code)
    assert exit.value.code != 0
    assert all(word in output for word in words), output


# -------------------------------------------------------------------------------------- schedules


def test_learning_rate_halves_at_milestones():
    phase = Phase(lr=8.0, milestones=(10, 20), steps=100)
    rates = [train.learning_rate(phase, step) for step in (1, 10, 11, 20, 21, 100)]
    assert rates == [8, 8, 4, 4, 2, 2]


def test_each_phase_follows_its_own_schedule(workplace, small_discriminator, monkeypatch):
    rates = []
    step = train.Learner.step

    def recording(learner, parts, lr):
        rates.append(lr)
        return step(learner, parts, lr)

    monkeypatch.setattr(train.Learner, "step", recording)
    psnr = ["--psnr.steps", "4", "--psnr.lr", "8e-4", "--psnr.milestones", "2"]
    gan = ["--gan.steps", "3", "--gan.lr", "4e-4", "--gan.milestones", "1"]
    run(monkeypatch, "--val-every", "1", *psnr, *gan)
    assert rates == [8e-4, 8e-4, 4e-4, 4e-4, 4e-4, 2e-4, 2e-4]
    assert [row["lr"] for row in rows()] == rates


def test_learning_rate_follows_a_cosine_to_zero_after_a_warm_up():
    phase = Phase(lr=8.0, milestones=(), steps=100, warmup=0)
    rates = [train.learning_rate(phase, step) for step in (1, 51, 101)]
    assert rates == pytest.approx([8, 4, 0])
    phase = Phase(lr=8.0, milestones=(50,), steps=100, warmup=3)
    assert [train.learning_rate(phase, step) for step in (1, 2, 3, 4, 5)] == [2, 4, 6, 8, 8]


# --------------------------------------------------------------------------------------------- GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_both_phases_run_on_cuda(workplace, monkeypatch):
    run(monkeypatch, "--device", "cuda", "--precision", "auto", "--workers", "2")
    assert len(rows()) == 5
