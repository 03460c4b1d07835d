"""Checkpoint files that survive a write that fails, and bad ones that are named."""

import os

import pytest
import torch

from training.runs import At, CheckpointError, load_checkpoint, save_checkpoint


def test_a_place_in_a_run_reads_well_and_counts_over_both_phases():
    at = At("gan", 12, before=100)
    assert str(at) == "gan step 12" and at.run_step == 112


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
