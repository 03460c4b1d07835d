"""EMA in float64, checkpoint files that survive, stopping, the log."""

import json
import math
import os
import signal

import pytest
import torch
from torch import nn

import utils
from utils import (
    CheckpointError,
    DeviceError,
    RunLog,
    StopRequest,
    choose_device,
    choose_precision,
    load_checkpoint,
    save_checkpoint,
    update_ema,
)


def test_ema_moves_the_right_way_by_the_right_amount():
    net, ema = (nn.BatchNorm1d(3).double() for _ in range(2))
    nn.init.constant_(net.weight, 5.0)
    nn.init.constant_(ema.weight, 1.0)
    net.running_mean.fill_(7.0)
    for _ in range(2):
        update_ema(ema, net, 0.9)
    # 1 -> 0.9 * 1 + 0.1 * 5 = 1.4 -> 0.9 * 1.4 + 0.1 * 5 = 1.76
    torch.testing.assert_close(ema.weight.data, torch.full((3,), 1.76).double(), rtol=0, atol=1e-7)
    assert ema.running_mean.eq(7).all()
    assert net.weight.eq(5).all() and ema.weight.grad_fn is None


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


def test_devices_and_precisions(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    cpu = choose_device("auto")
    assert cpu == torch.device("cpu")
    with pytest.raises(DeviceError, match="cuda"):
        choose_device("cuda")
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(utils, "has_native_bf16", lambda device, native=native: native)
        assert choose_precision("auto", cpu) == dtype
    assert choose_precision("fp32", cpu) == torch.float32


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_resumed_log_forgets_the_steps_that_are_done_again(tmp_path):
    with RunLog(tmp_path, lambda row: True, 0) as log:
        for step in (1, 2, 3):
            log.metric({"phase": "psnr", "run_step": step, "psnr": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"phase": "psnr", "run_st')  # as a power cut leaves it
    with RunLog(tmp_path, lambda row: row["run_step"] <= 2, 2) as log:
        log.metric({"phase": "psnr", "run_step": 4, "psnr": math.inf})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["run_step"] for row in rows] == [1, 2, 4]
    assert rows[-1]["psnr"] is None  # infinity is no JSON
