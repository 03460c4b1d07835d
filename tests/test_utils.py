"""Devices and precisions, files that are written whole, stopping."""

import errno
import os
import re
import signal
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch

import utils
from utils import (
    DeviceError,
    StopRequest,
    UnreadableError,
    choose_device,
    choose_precision,
    load_tensors,
    naming,
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


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def saved():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    return {"step": 5, "net": dict(net.state_dict()), "name": "x", "empty": torch.zeros(0)}


def test_a_flipped_byte_is_refused_by_name_or_changes_nothing(saved, tmp_path):
    path = tmp_path / "last.pt"
    torch.save(saved, path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    flips = [(at, random.integers(8)) for at in random.choice(len(whole), 200, replace=False)]
    # The attribute that makes an entry a folder, for which torch gave what lay in its memory.
    flips += [(entry.start() + 38, 4) for entry in re.finditer(b"PK\x01\x02", whole)]
    refused = 0
    for position, bit in flips:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            content, _ = load_tensors(path)
            assert equal(content, saved), position
        except UnreadableError as error:
            assert str(error), position
            refused += 1
    assert refused > 20  # the rest is padding, times, sizes that are there twice


def test_the_checksum_that_is_wrong_is_named(saved, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(saved, path)
    kernel = saved["net"]["0.weight"].numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(kernel, kernel[:-1] + b"\0"))
    with pytest.raises(UnreadableError, match=r"it is damaged \(Bad CRC-32 .*data/0'\); get it"):
        load_tensors(path)


def test_files_without_checksums_are_read(saved, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(saved, tmp_path / "no checksums.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "no checksums.pth") as archive:
        assert not any(entry.CRC for entry in archive.infolist())
    torch.save(saved, tmp_path / "мир.pth")  # its archive is called the same
    torch.save(saved, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "мир.pth") as archive:  # as another program packs it again
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    for path in tmp_path.iterdir():
        content, _ = load_tensors(path)
        assert equal(content, saved), path.name


@pytest.mark.parametrize(
    "number, remedy", [("ENOSPC", "Make room"), ("EDQUOT", "Make room"), ("EACCES", "Mend that")]
)
def test_a_failure_to_write_names_the_file_and_what_to_do(number, remedy):
    code = getattr(errno, number)
    words = re.escape(f"a/b.png cannot be written ({os.strerror(code)}). {remedy}, then give")
    with pytest.raises(OSError, match=words), naming(PurePosixPath("a/b.png")):
        raise OSError(code, os.strerror(code))
