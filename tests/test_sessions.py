"""A run over several sessions: when it saves, what it goes on from, what its logs then say."""

import json
import os
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_runs import Killed, die, read_events, rows, run, spoil, stop_at

import training.runs
from config import Config
from training.ranks import Ranks
from training.runs import CheckpointError, RunFolder, load_checkpoint

LAST = Path("checkpoints/tiny/last.pt")
UNSCORED = ("--valid-dir", "")  # which takes less time
PSNR_ALONE = ("--gan.steps", "0", *UNSCORED)


@pytest.fixture(autouse=True)
def small(workplace, small_discriminator):
    """Every run here is in a folder of its own, and of small networks."""


def change_last(change):
    """Rewrite last.pt as something else might have left it."""
    state = load_checkpoint(LAST)
    change(state)
    torch.save(state, LAST)


def interrupt():
    signal.raise_signal(signal.SIGINT)


# ------------------------------------------------------------------------------- when a run saves


@pytest.fixture
def saved(monkeypatch):
    """The steps of each checkpoint that is written."""
    steps, save = [], training.runs.save_checkpoint

    def noting(path, state):
        steps.append(state["step"])
        save(path, state)

    monkeypatch.setattr(training.runs, "save_checkpoint", noting)
    return steps


def test_a_save_that_falls_on_a_skipped_step_is_made_up_for_at_the_next(saved, monkeypatch):
    spoil(monkeypatch, {2})
    run(monkeypatch, *PSNR_ALONE, "--psnr.steps", "6", "--save-every", "2")
    assert saved == [3, 4, 6]


def test_a_stop_saves_even_if_its_step_was_skipped(saved, monkeypatch):
    spoil(monkeypatch, {3})
    stop_at(monkeypatch, 3, interrupt)
    assert run(monkeypatch, *PSNR_ALONE) == 128 + signal.SIGINT
    assert saved == [2, 3]


def test_a_phases_end_saves_even_if_its_step_was_skipped(saved, monkeypatch):
    spoil(monkeypatch, {5})
    run(monkeypatch, *PSNR_ALONE)
    assert saved == [2, 4, 5]


# ----------------------------------------------------------------------- what a run goes on from


def test_a_checkpoint_of_an_older_version_goes_on_as_if_nothing_were_new(monkeypatch, capsys):
    """Settings it does not know were then as their defaults are; its packs were ids alone."""
    run(monkeypatch, *PSNR_ALONE, "--psnr.steps", "4", "--name", "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 2, interrupt)
        run(patch, *PSNR_ALONE, "--psnr.steps", "4")

    def age(state):
        del state["config"]["degradation"], state["config"]["unshuffle"]
        state["packs"] = [*state["packs"]]

    change_last(age)
    capsys.readouterr()
    run(monkeypatch, *PSNR_ALONE, "--psnr.steps", "4")
    said = capsys.readouterr().out
    assert f"Going on from {LAST}: psnr step 2\n" in said and "Changed since" not in said
    ours, whole = (
        safetensors.torch.load_file(f"checkpoints/{name}/psnr.safetensors")
        for name in ("tiny", "whole")
    )
    torch.testing.assert_close(ours, whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    "content", [{"params_ema": {"weight": torch.zeros(1)}}, [torch.zeros(1)]], ids=["dict", "list"]
)
def test_a_last_pt_of_another_program_is_refused(content):
    run_folder = RunFolder(Config(name="tiny"), Ranks())
    LAST.parent.mkdir(parents=True)
    torch.save(content, LAST)
    with pytest.raises(CheckpointError, match=r"last\.pt was not written by train\.py; choose"):
        run_folder.resume(set())


def test_what_killed_processes_left_half_written_is_gone_once_the_run_goes_on(monkeypatch):
    run(monkeypatch, *PSNR_ALONE, "--psnr.steps", "1")
    folders = [LAST.parent / name for name in (".", "samples", "generators")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / ".last.pt~0123456789ab.tmp").write_bytes(b"half")
    run(monkeypatch, *PSNR_ALONE, "--psnr.steps", "1")
    assert not [path for folder in folders for path in folder.glob(".*")]


def test_a_run_without_its_last_pt_can_start_from_its_own_generator(monkeypatch):
    run(monkeypatch, *PSNR_ALONE, "--psnr.steps", "1")
    own = LAST.with_name("psnr.safetensors")
    before = safetensors.torch.load_file(own)
    LAST.unlink()
    still = ["--psnr.steps", "0", "--gan.steps", "1", "--gan.lr", "1e-30"]
    run(monkeypatch, *still, *UNSCORED, "--init-from", str(own))
    after = safetensors.torch.load_file(LAST.with_name("gan.safetensors"))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-7)


# -------------------------------------------------------------------------- what is over stays so


def settings_told_by(name):
    with safetensors.safe_open(LAST.with_name(name), "pt") as file:
        return json.loads(file.metadata()["config"])


def test_a_finished_run_keeps_its_files_and_its_settings(monkeypatch, capsys):
    """Whoever forgets to give another --name would else have networks that tell what is not so."""
    run(monkeypatch, *UNSCORED)
    kept = {name: LAST.with_name(name).read_bytes() for name in ("psnr.safetensors", "config.json")}
    kept["gan.safetensors"] = LAST.with_name("gan.safetensors").read_bytes()
    for name in kept:
        os.utime(LAST.with_name(name), ns=(0, 0))
    others = ["--batch-size", "4", "--degradation.level", "strong", "--discriminator", "unet"]
    run(monkeypatch, *UNSCORED, *others)
    said = capsys.readouterr().out
    for words in (
        "batch_size was 2, is 4",
        "level was 'none', is 'strong'",
        "was 'vgg', is 'unet'",
    ):
        assert f"{words}: no effect, as no step is left to do" in said
    for name, content in kept.items():
        assert LAST.with_name(name).read_bytes() == content
    assert LAST.with_name("gan.safetensors").stat().st_mtime_ns == 0  # test.py takes the newest


def test_the_psnr_phases_file_tells_its_own_settings_whatever_the_gan_has(monkeypatch):
    run(monkeypatch, *UNSCORED, *PSNR_ALONE)
    run(monkeypatch, *UNSCORED, "--gan.steps", "1", "--batch-size", "4")
    assert settings_told_by("psnr.safetensors")["batch_size"] == 2
    assert settings_told_by("gan.safetensors")["batch_size"] == 4


def test_a_longer_phase_replaces_its_file_though_it_was_killed_before_it_wrote_it(monkeypatch):
    run(monkeypatch, *UNSCORED, *PSNR_ALONE, "--psnr.steps", "2")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "finish", lambda *_: die())
        run(patch, *UNSCORED, *PSNR_ALONE, "--psnr.steps", "4")
    run(monkeypatch, *UNSCORED, *PSNR_ALONE, "--psnr.steps", "4")
    with safetensors.safe_open(LAST.with_name("psnr.safetensors"), "pt") as file:
        assert file.metadata()["step"] == "4"


# ------------------------------------------------------------------------------ what its logs say


def test_tensorboard_has_every_step_of_a_run_that_was_stopped_and_went_on(monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3, interrupt)
        run(patch, "--gan.steps", "2")
    run(monkeypatch, "--gan.steps", "2")
    events = read_events(LAST.parent)

    def steps(name):
        return [point.step for point in events.Scalars(name)]

    assert steps("psnr/pixel") == [1, 2, 3, 4, 5] and steps("gan/D(real)") == [6, 7]
    logged = {row["run_step"]: row["losses"]["pixel"] for row in rows()}
    assert [*logged] == [2, 4, 5, 7]
    curve = {point.step: point.value for point in events.Scalars("psnr/pixel")}
    assert [curve[step] for step in (2, 4, 5)] == pytest.approx([logged[s] for s in (2, 4, 5)])
    for stem in ("a", "b"):
        assert [picture.step for picture in events.Images(stem)] == [2, 4, 5, 7]


def test_the_time_of_a_phase_is_that_of_all_its_sessions(monkeypatch):
    run(monkeypatch, *PSNR_ALONE, "--psnr.steps", "1")
    change_last(lambda state: state.update(seconds=1000.0))
    run(monkeypatch, *PSNR_ALONE, "--psnr.steps", "2")
    assert load_checkpoint(LAST)["seconds"] >= rows()[-1]["seconds"] >= 1000
