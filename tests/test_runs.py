"""Checkpoint files that survive a write that fails, and bad ones that are named."""

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import safetensors.torch
import torch

from config import Config
from model import RRDBNet
from training.ranks import Ranks
from training.runs import (
    At,
    CheckpointError,
    RunFolder,
    TrainingError,
    load_checkpoint,
    save_checkpoint,
    set_aside,
)


def test_a_place_in_a_run_reads_well_and_counts_over_both_phases():
    at = At("gan", 12, before=100)
    assert str(at) == "gan step 12" and at.run_step == 112


def test_what_stops_a_run_says_whether_there_is_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, broken = RunFolder(Config(name="x"), Ranks()), RRDBNet(features=4, blocks=1, growth=4)
    torch.nn.init.constant_(broken.conv_first.weight, float("nan"))
    with pytest.raises(TrainingError, match="there is no checkpoint yet"):
        run.refuse_broken(broken, At("psnr", 3))
    run.last.parent.mkdir(parents=True)
    run.last.touch()
    with pytest.raises(TrainingError, match=r"last\.pt is older"):
        run.refuse_broken(broken, At("psnr", 3))


def test_a_generator_that_cannot_be_deleted_now_stops_nothing(tmp_path, monkeypatch):
    """As on Windows, while another program reads it."""
    monkeypatch.chdir(tmp_path)

    def held(path):
        raise PermissionError(13, "held")

    monkeypatch.setattr(Path, "unlink", lambda path, **_: held(path))
    run = RunFolder(Config(name="x", keep_generators=1, features=4, blocks=1, growth=4), Ranks())
    generator = RRDBNet(features=4, blocks=1, growth=4)
    with monkeypatch.context() as patch:
        patch.setattr("training.runs.save_generator", lambda net, path, **_: path.touch())
        run.folder.mkdir(parents=True)
        for step in (2, 4):
            run.keep_generators(generator, At("gan", step), {})
    assert len(list((run.folder / "generators").iterdir())) == 2


def test_what_a_run_goes_on_from_is_let_go_once_it_is_restored(tmp_path, monkeypatch):
    """It holds each network twice, and the moments of the optimizers."""
    monkeypatch.chdir(tmp_path)

    class Saved:
        at, dtype = At("gan", 3, before=2), torch.float32

        def load_state_dict(self, state):
            self.state = state

    run, learner = RunFolder(Config(name="x"), Ranks()), Saved()
    run.at, run.checkpoint = Saved.at, {"seconds": 7.5, "net_g": {}}
    assert run.restore(learner) == 7.5 and learner.state["net_g"] == {}
    assert run.checkpoint is None and run.restore(learner) == 0


def test_checkpoints_come_back(tmp_path):
    state = dict(step=3, config=dict(lr=1e-4, milestones=(1, 2)), net={"w": torch.rand(3)})
    save_checkpoint(tmp_path / "last.pt", state)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert loaded["config"] == state["config"] and torch.equal(
        loaded["net"]["w"], state["net"]["w"]
    )
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_write_that_fails_half_way_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "last.pt", {"step": 1})

    def fail(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path / "last.pt", {"step": 2})
    assert load_checkpoint(tmp_path / "last.pt") == {"step": 1}


def test_a_damaged_checkpoint_is_refused_and_what_is_good_is_named(tmp_path):
    path, weights = tmp_path / "last.pt", torch.rand(1000)
    save_checkpoint(path, {"step": 1, "weights": weights})
    numbers = weights.numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(numbers, b"\0" + numbers[1:]))
    with pytest.raises(CheckpointError, match=r"last\.pt .*CRC-32 .*data/0'\)\)\. .*--name\.$"):
        load_checkpoint(path)
    for name, words in (
        ("psnr_best.safetensors", "psnr_best.safetensors goes on from"),
        ("psnr.safetensors", "psnr.safetensors --psnr.steps 0 goes on from"),
    ):
        (tmp_path / name).touch()
        with pytest.raises(CheckpointError, match=f"--name, where --init-from .*{words}"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    "error",
    [
        *(PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "I/O")),
        *(MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    ],
)
def test_a_checkpoint_that_cannot_be_read_now_is_not_given_up(error, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "last.pt", {"step": 1})
    monkeypatch.setattr("formats.tensors._load_pickle", Mock(side_effect=error))
    with pytest.raises(CheckpointError, match=r"it may be whole\. Fix that, then run the same"):
        load_checkpoint(tmp_path / "last.pt")


def test_numbers_that_lead_out_of_a_file_are_damage(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "last.pt", {"step": 1})
    error = OSError(errno.EINVAL, "Invalid argument")
    monkeypatch.setattr("formats.tensors._load_pickle", Mock(side_effect=error))
    with pytest.raises(CheckpointError, match="Move it away to start afresh"):
        load_checkpoint(tmp_path / "last.pt")


def test_bad_checkpoints_are_named_and_code_is_not_run(tmp_path, malicious_pickle):
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "empty.pt").write_text("")
    bomb, marker = malicious_pickle
    for path in (tmp_path / "text.pt", tmp_path / "empty.pt", bomb):
        with pytest.raises(CheckpointError, match=path.name):
            load_checkpoint(path)
    assert not marker.exists()


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_a_full_disk_is_named_and_keeps_the_old_checkpoint(tmp_path):
    import resource

    save_checkpoint(tmp_path / "last.pt", {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"last\.pt cannot .* \(File too large\); the"):
            save_checkpoint(tmp_path / "last.pt", {"step": 2, "weights": torch.rand(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(tmp_path / "last.pt") == {"step": 1}
    assert os.listdir(tmp_path) == ["last.pt"]


# ----------------------------------------------------------------------- what another run has left

OURS = (
    *("psnr.safetensors", "psnr_best.safetensors", "gan.safetensors", "curves.png"),
    *("generators/gan_0000005.safetensors", "samples/a_0000005_gan.png", "metrics.jsonl"),
)
BEFORE = ("config.json", "events.out.tfevents.1.host.2")  # written by runs that got nowhere, too


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_what_an_earlier_run_left_is_moved_and_nothing_else(tmp_path, capsys):
    theirs = ("notes.txt", "mine.safetensors", "earlier-1/psnr.safetensors")
    fill(tmp_path, (*OURS, *BEFORE, *theirs))
    set_aside(tmp_path, Path())
    moved = {f"earlier-2/{name}": name for name in (*OURS, *BEFORE)}
    assert contents(tmp_path) == moved | {name: name for name in theirs}
    assert f"they are in {tmp_path / 'earlier-2'} now" in capsys.readouterr().out
    set_aside(tmp_path, Path())
    assert contents(tmp_path) == moved | {name: name for name in theirs}


@pytest.mark.parametrize("name", OURS)
def test_each_result_alone_is_one(name, tmp_path):
    fill(tmp_path, (name,))
    set_aside(tmp_path, Path())
    assert contents(tmp_path) == {f"earlier-1/{name}": name}


@pytest.mark.parametrize("names", [(), BEFORE])
def test_a_run_that_ended_before_it_had_results_leaves_no_folder(names, tmp_path, capsys):
    fill(tmp_path, names)
    set_aside(tmp_path, Path())
    assert contents(tmp_path) == {name: name for name in names} and not capsys.readouterr().out


def test_the_file_that_a_run_starts_from_stays_where_it_is_called_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "run", ("psnr.safetensors",))
    set_aside(Path("run"), Path("run/psnr.safetensors"))
    assert contents(tmp_path) == {"run/psnr.safetensors": "psnr.safetensors"}
    fill(tmp_path / "run", ("gan.safetensors",))
    set_aside(Path("run"), Path("run/psnr.safetensors"))
    assert contents(tmp_path / "run") == {
        "psnr.safetensors": "psnr.safetensors",
        "earlier-1/psnr.safetensors": "psnr.safetensors",
        "earlier-1/gan.safetensors": "gan.safetensors",
    }


# ------------------------------------------------------------------------------ kept generators


@pytest.fixture
def open_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunFolder(Config(name="r", keep_generators=2), Ranks()) as run:
        run.open_log()
        yield run


def keep(run, at, psnr, bicubic):
    scores = {"psnr": psnr, "ssim": 0.5, "bicubic_psnr": bicubic, "bicubic_ssim": 0.25}
    run.keep_generators(RRDBNet(features=4, blocks=1, growth=4).eval(), at, scores)
    run.record(at, scores)


def test_the_generator_just_written_is_kept_whatever_an_earlier_process_left(open_run):
    (open_run.folder / "generators").mkdir()
    left = ("gan_0000900.safetensors", "gan_0000001.safetensors", "gan_favourite.safetensors")
    for name in left:
        (open_run.folder / "generators" / name).touch()
    for step in (2, 3, 4):
        keep(open_run, At("gan", step, before=7), 20, 10)
    assert sorted(os.listdir(open_run.folder / "generators")) == [
        *("gan_0000003.safetensors", "gan_0000004.safetensors", "gan_0000900.safetensors"),
        "gan_favourite.safetensors",
    ]


def test_the_best_is_of_validations_on_the_same_images(open_run, capsys):
    def best():
        with safetensors.safe_open(open_run.folder / "psnr_best.safetensors", "pt") as file:
            return file.metadata()["step"]

    # PSNR of the network and of bicubic at each step; then the step whose generator is the best.
    steps = [(30, 25, 1), (29, 25, 1), (20, 15, 3), (19, 15, 3), (21, 15, 5), (29, 25, 6)]
    for step, (psnr, bicubic, expected) in enumerate(steps, 1):
        keep(open_run, At("psnr", step), psnr, bicubic)
        assert best() == str(expected)
        said = "validation images have changed" in capsys.readouterr().out
        assert said == (step in (3, 6))
