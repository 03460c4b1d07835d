"""Devices and precisions, files that are written whole, stopping."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

import utils
from utils import (
    DeviceError,
    StopRequest,
    choose_device,
    choose_precision,
    listed,
    locked,
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


# ------------------------------------------------------------------------ full disks, locks, lists


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_with_the_file_and_the_old_file_stays(number, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(OSError) as error, replacing(path):
        raise OSError(number, os.strerror(number))
    assert error.value.errno == number and path.read_bytes() == b"old"
    assert error.value.filename == path
    assert f"{os.strerror(number)}; " in str(error.value) and str(tmp_path) in str(error.value)
    with pytest.raises(OSError, match=str(tmp_path)) as error, replacing(path):
        try:
            raise OSError(number, os.strerror(number))
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")  # as torch.save ends
    assert error.value.errno == number
    with pytest.raises(OSError, match=r"^\[Errno 5\] other$"), replacing(path):
        raise OSError(errno.EIO, "other")


def test_the_file_system_says_how_much_is_free(tmp_path):
    stat = os.statvfs(tmp_path)
    total = stat.f_blocks * stat.f_frsize / 1e9
    shown = re.search(r"has ([\d.]+) [GM]B free of ([\d.]+) GB", utils.free_space(tmp_path))
    assert float(shown[2]) == pytest.approx(total, abs=0.1)


@pytest.fixture(params=["flock", "no flock"])
def storage(request, monkeypatch):
    """The file system's locks work, or they do not, as on some clusters."""
    if request.param == "no flock":
        monkeypatch.setattr(utils, "has_locks", lambda folder: False)


class Refused(Exception):
    pass


def refuse(holder):
    raise Refused(holder)


def test_a_lock_is_one_processs_and_others_are_told_or_wait(storage, tmp_path):
    path, told = tmp_path / ".lock", []
    with locked(path, refuse):
        with pytest.raises(Refused), locked(path, refuse):
            pass
        waiting = threading.Thread(target=enter, args=(path, told))
        waiting.start()
        while not told:
            time.sleep(0.01)
        assert len(told) == 1  # it waits
    waiting.join(20)
    assert told[1:] == ["entered"]
    with locked(path, refuse):
        pass


def enter(path, told):
    with locked(path, told.append):
        told.append("entered")


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_storage_without_locks_is_recognised(number, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(file, operation):
        raise OSError(number, os.strerror(number))

    assert utils.has_locks(tmp_path)
    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert not utils.has_locks(tmp_path)
    with locked(tmp_path / ".lock", refuse):
        with pytest.raises(Refused) as refused, locked(tmp_path / ".lock", refuse):
            pass
        holder = str(refused.value)
    assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in holder
    assert f"if it is gone, delete {tmp_path / '.lock.held'})" in holder
    assert not list(tmp_path.iterdir())


HOLD = """
import sys, time
from filelock import SoftFileLock
lock = SoftFileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_of_a_killed_process_is_free_here_and_named_if_it_was_elsewhere(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(utils, "has_locks", lambda folder: False)
    path, held = tmp_path / ".lock", tmp_path / ".lock.held"
    command = [sys.executable, "-c", HOLD, str(held)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(Refused) as refused, locked(path, refuse):
            pass
        process.kill()
    assert f"process {process.pid} on" in str(refused.value)
    with locked(path, refuse):
        pass
    held.write_text("4242\nnode7\n")
    with pytest.raises(Refused, match="process 4242 on node7, since"), locked(path, refuse):
        pass


def test_long_lists_are_short():
    assert listed([]) == "" and listed(["a"]) == "a"
    assert listed(list("abcde")) == "a, b, c, d, e"
    assert listed(list("abcdef")) == "a, b, c, d, e and 1 other"
    assert listed([str(i) for i in range(3002)], most=2) == "0, 1 and 3,000 others"
