"""Devices and precisions, files that are written whole, stopping."""

import os
import signal

import pytest
import torch

import utils
from utils import (
    DeviceError,
    StopRequest,
    choose_device,
    choose_precision,
    remove_leftovers,
    replacing,
)


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


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    kept = [".lock", ".y.1.tmp", "x", "x.tmp"]
    for name in (*kept, ".x.123.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "x")
    assert sorted(os.listdir(tmp_path)) == kept
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "x", "x.tmp"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_sigterm_leaves_an_error_the_time_to_be_told():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), StopRequest() as stop:
        raise RuntimeError
    try:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)

    with StopRequest():
        pass
    assert signal.getsignal(signal.SIGTERM) == before
