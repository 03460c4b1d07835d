"""Devices and precisions, files that are written whole, stopping, names and output."""

import errno
import gc
import io
import multiprocessing
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import resource_sharer
from multiprocessing.connection import Client
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import torch
from programs import ends

import images.files
import utils
from formats.tensors import UnreadableError, load_tensors
from images import locks
from images.files import write_image
from images.locks import locked
from images.names import fitting, longest_name, shortened
from model import RRDBNet
from upscaling import comparing, devices
from upscaling.arguments import SMALLEST_TILE
from upscaling.devices import DeviceError, choose_device, choose_precision, is_out_of_memory
from upscaling.inputs import UsageError
from upscaling.upscaler import Upscaler
from utils import (
    STOPS,
    StopRequest,
    WriteError,
    hear_kill,
    listed,
    naming,
    nowhere,
    prepare_output,
    printable,
    remove_leftovers,
    replacing,
    result_of,
    silence,
    worker_init,
)

FORK = multiprocessing.get_context("fork") if os.name != "nt" else multiprocessing


def test_devices_and_precisions(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    cpu = choose_device("auto")
    assert cpu == torch.device("cpu")
    with pytest.raises(DeviceError, match="cuda"):
        choose_device("cuda")
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "has_native_bf16", lambda device, native=native: native)
        assert choose_precision("auto", cpu) == dtype
    assert choose_precision("fp32", cpu) == torch.float32


def test_a_gpu_that_torch_was_not_built_for_is_told(monkeypatch, capsys):
    """What pip installs on Windows is without CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(devices.shutil, "which", lambda program: f"/bin/{program}")
    for built, words in ((True, ("finds none here", "")), (False, ("without CUDA", "not used"))):
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda built=built: built)
        with pytest.raises(DeviceError, match=words[0]):
            choose_device("cuda")
        choose_device("cpu")
        choose_device("auto", local_rank=1)
        assert not capsys.readouterr().err
        choose_device("auto")
        assert words[1] in capsys.readouterr().err
    monkeypatch.setattr(devices.shutil, "which", lambda program: None)
    choose_device("auto")
    assert not capsys.readouterr().err


def test_what_is_not_shown_may_have_any_letters(monkeypatch):
    """The system's encoding may have few: as in a Windows console's code page."""
    real = open
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *a, **k: real(*a, **{"encoding": "cp1252"} | k))
        with silence():
            print("写真 \udce9")
        with nowhere() as stream:
            stream.write("写真 \udce9")


def test_a_file_that_another_program_has_open_is_waited_for(tmp_path, monkeypatch):
    """As on Windows, where it cannot be replaced then."""
    path, tries = tmp_path / "x", []
    path.write_bytes(b"old")
    replace = os.replace

    def held(source, target):
        tries.append(1)
        if len(tries) < 3:
            raise PermissionError(13, "held")
        replace(source, target)

    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr("utils.PATIENCE", 0)
    with pytest.raises(OSError, match=r"x cannot be written \(held"), replacing(path) as file:
        file.write(b"new")
    assert len(tries) == 1 and path.read_bytes() == b"old"  # elsewhere that is no passing state
    monkeypatch.setattr("utils.PATIENCE", 5)
    with replacing(path) as file:
        file.write(b"new")
    assert len(tries) == 3 and path.read_bytes() == b"new" and [*tmp_path.iterdir()] == [path]


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


@pytest.mark.parametrize("enabled, folder, limit", [(1, 100, 255), (0, 100, 158), (0, 221, 0)])
def test_windows_counts_the_whole_path_unless_told_otherwise(enabled, folder, limit, monkeypatch):
    """MAX_PATH less the zero behind it; there has to be room for a temporary file, too."""
    ntdll = SimpleNamespace(RtlAreLongPathsEnabled=lambda: enabled)
    monkeypatch.setattr("ctypes.windll", SimpleNamespace(ntdll=ntdll), raising=False)
    monkeypatch.setattr(os.path, "abspath", str)
    monkeypatch.setattr("images.names.sys", SimpleNamespace(platform="win32"))
    monkeypatch.delattr(os, "pathconf", raising=False)  # which Windows has not
    assert longest_name(Path("x" * folder)) == limit


def test_a_file_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    """Or a power cut would leave an empty file that looks like a result."""
    done, synced, put = [], os.fsync, os.replace

    def sync(number):
        synced(number)
        done.append(os.fstat(number).st_size)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("named") or put(*paths))
    with replacing(tmp_path / "x") as file:
        file.write(b"new")
    assert done == [3, "named"]


def test_a_disk_that_is_gone_is_told_by_the_name_of_the_file(tmp_path, monkeypatch):
    gone = Mock(side_effect=OSError(5, "Input/output error"))
    monkeypatch.setattr(os, "fsync", gone)
    monkeypatch.setattr(Path, "unlink", gone)
    said = r"x cannot be written \(Input/output error\)"
    with pytest.raises(WriteError, match=said), replacing(tmp_path / "x") as file:
        file.write(b"new")
    assert gone.call_count == 2


def test_an_error_holds_nothing_of_what_has_failed():
    """Twenty damaged pictures would else stay in memory until Python looks for cycles."""
    held = []

    def fail():
        pixels = np.zeros(10)
        held.append(weakref.ref(pixels))
        raise OSError("damaged")

    gc.disable()
    try:
        with ThreadPoolExecutor(1) as pool:
            for _ in range(5):
                with suppress(OSError):
                    result_of(pool.submit(fail))
            pool.submit(int).result()  # whose frames are those of the last one's no more
        assert sum(pixels() is not None for pixels in held) <= 1
    finally:
        gc.enable()


def test_swap_that_cannot_be_counted_is_none(monkeypatch):
    """As on a Windows whose performance counters are turned off."""
    counters = RuntimeError("PdhAddEnglishCounterW failed. Performance counters may be disabled.")
    monkeypatch.setattr(psutil, "swap_memory", Mock(side_effect=counters))
    assert utils.available_swap() == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_the_first_signal_asks_at_once_in_words_and_the_third_ctrl_c_interrupts(name, capfd):
    if not hasattr(signal, name):
        pytest.skip(f"no {name} on this system")
    before, number = signal.getsignal(signal.SIGINT), getattr(signal, name)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == number
        assert "Stopping: this step ends first, then all is saved" in capfd.readouterr().err
        for _ in range(2 - (number == signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
        assert "Ctrl-C once more would lose it" in capfd.readouterr().err
        signal.raise_signal(signal.SIGINT)
    assert stop.signal == number
    assert signal.getsignal(signal.SIGINT) == before


def test_other_ranks_ask_in_silence_and_a_closed_terminal_is_no_error(capfd, monkeypatch):
    with StopRequest(speaks=False) as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.signal == signal.SIGTERM and capfd.readouterr().err == ""

    def closed(file, content):
        raise OSError(5, "Input/output error")

    with StopRequest() as stop:
        monkeypatch.setattr(os, "write", closed)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM


@pytest.mark.skipif(os.name == "nt", reason="nohup is POSIX")
def test_a_run_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.signal is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


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


@pytest.mark.skipif(os.name == "nt", reason="SIGHUP is POSIX")
def test_a_kill_or_a_closed_terminal_leaves_nothing_half_written(tmp_path):
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            for each in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(each, signal.SIG_DFL)
            hear_kill()
            with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x") as file:
                file.write(b"half")
                signal.raise_signal(number)
            signal.raise_signal(number)  # while it tidies up, that is
            assert not list(tmp_path.iterdir())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
        hear_kill()
        signal.raise_signal(signal.SIGHUP)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.skipif(os.name == "nt", reason="SIGHUP is POSIX")
def test_tidying_up_goes_on_when_the_terminal_is_gone(tmp_path):
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        with output_to_a_pipe() as pipe:
            prepare_output()
            hear_kill()
            pipe.close()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGHUP)
            print("a table")  # SystemExit before what the next line saves
            (tmp_path / "table.csv").write_text("a table")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.slow
def test_a_process_of_torchruns_ends_without_a_clean_up_that_may_abort(monkeypatch):
    script = """
import atexit, sys
sys.path.insert(0, sys.argv[1])
from training.ranks import end_process
atexit.register(print, "tidied up")
print("all done", end="")
end_process(3)
"""
    for count, expected in (("1", "all donetidied up\n"), ("2", "all done")):
        monkeypatch.setenv("WORLD_SIZE", count)
        command = [sys.executable, "-c", script, str(Path(__file__).parents[1])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        assert (done.returncode, done.stdout) == (3, expected)


def follow_and_wait(init, ready):
    init(0)
    ready.set()
    while True:
        time.sleep(0.01)


def start_and_wait(init, ready, pids):
    worker = FORK.Process(target=follow_and_wait, args=(init, ready), daemon=True)
    worker.start()
    pids.put(worker.pid)
    time.sleep(60)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_workers_leave_signals_to_their_parent_and_end_by_its_word():
    init, ready = worker_init(), FORK.Event()
    worker = FORK.Process(target=follow_and_wait, args=(init, ready), daemon=True)
    worker.start()
    assert ready.wait(10)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(worker.pid, number)
    worker.join(0.2)
    assert worker.is_alive()
    (ending,) = init.args
    ending.value = 1  # as when the parent's Python ends
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_workers_end_with_a_parent_that_is_killed():
    ready, pids = FORK.Event(), FORK.SimpleQueue()
    parent = FORK.Process(target=start_and_wait, args=(worker_init(), ready, pids))
    parent.start()
    assert ready.wait(10)
    worker = psutil.Process(pids.get())
    parent.kill()
    parent.join()
    assert ends(worker), "it outlives its parent"


def offer_memory(init, parent):
    init(0)
    resource_sharer.DupFd(1)  # as torch offers the memory of a batch
    parent.send((resource_sharer._resource_sharer._address, bytes(FORK.current_process().authkey)))
    parent.recv()
    time.sleep(0.2)  # the thread that offers it has seen how it went
    sys.excepthook(ValueError, ValueError("a real fault"), None)


@pytest.mark.skipif(os.name == "nt", reason="Windows hands memory over by name")
def test_a_parent_that_stops_in_the_midst_of_a_batch_leaves_no_traceback(capfd):
    """As it does when another worker dies: torch raises wherever the parent then is."""
    here, there = FORK.Pipe()
    worker = FORK.Process(target=offer_memory, args=(worker_init(), there), daemon=True)
    worker.start()
    assert here.poll(10)
    address, key = here.recv()
    Client(address, authkey=key).close()
    here.send("stopped")
    worker.join(10)
    assert capfd.readouterr().err == "ValueError: a real fault\n"


def test_what_another_user_left_unfinished_stays(tmp_path, monkeypatch):
    left = tmp_path / ".pack~0123456789ab.tmp"
    left.touch()

    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        remove_leftovers(tmp_path)
    assert left.exists()
    remove_leftovers(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: "
            "can't allocate memory: you tried to allocate 4398046511104 bytes."
        ),
        RuntimeError(  # on Windows
            "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: "
            "you tried to allocate 4398046511104 bytes."
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GiB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Invalid buffer size: 9.75 GB"),  # MPS's, of one tensor
        RuntimeError("GET was unable to find an engine to execute this computation"),  # cuDNN's
    ],
)
def test_every_allocators_error_is_known(error):
    assert is_out_of_memory(error)


def test_a_real_allocators_error_is_known_and_others_are_not():
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(ValueError("cannot allocate memory to a name"))


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
    "number, remedy",
    [("ENOSPC", "Make room there (the disk of "), ("EDQUOT", "Make room"), ("EACCES", "Fix that")],
)
def test_a_failure_to_write_names_the_file_and_what_to_do(number, remedy):
    code = getattr(errno, number)
    words = re.escape(f"a/b.png cannot be written ({os.strerror(code)}). {remedy}")
    path, words = Path("a/b.png"), f"{words}.*, then give the same command again"
    with pytest.raises(WriteError, match=words) as error, naming(path), naming(path):
        raise OSError(code, os.strerror(code))  # named twice, told once
    assert error.value.errno == code


def test_a_failure_that_names_another_file_is_not_about_this_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"), replacing(tmp_path / "x"):
        (tmp_path / "none").read_bytes()


# ------------------------------------------------------------------------ full disks, locks, lists


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_with_the_file_and_the_old_file_stays(number, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(WriteError, match="the one before it is intact") as error, replacing(path):
        raise OSError(number, os.strerror(number))
    assert error.value.errno == number and path.read_bytes() == b"old"
    assert str(error.value).startswith(f"{path} cannot be written ({os.strerror(number)})")
    with pytest.raises(WriteError, match=str(tmp_path)) as error, replacing(path):
        try:
            raise OSError(number, os.strerror(number))
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")  # as torch.save ends
    assert error.value.errno == number


def test_the_file_system_says_how_much_is_free(tmp_path):
    stat = os.statvfs(tmp_path)
    total = stat.f_blocks * stat.f_frsize / 1e9
    shown = re.search(r"has ([\d.]+) [GM]B free of ([\d.]+) GB", utils.free_space(tmp_path))
    assert float(shown[2]) == pytest.approx(total, abs=0.1)


@pytest.fixture(params=["flock", "no flock"])
def storage(request, monkeypatch):
    """The file system's locks work, or they do not, as on some clusters."""
    if request.param == "no flock":
        monkeypatch.setattr(locks, "has_locks", lambda folder: False)


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

    assert locks.has_locks(tmp_path)
    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert not locks.has_locks(tmp_path)
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
    monkeypatch.setattr(locks, "has_locks", lambda folder: False)
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


# ------------------------------------------------------------------------------- names and output


def test_a_file_whose_name_has_every_byte_there_is_room_for_is_replaced(tmp_path):
    path = tmp_path / ("é" * 125 + "x.png")  # 255 bytes
    for content in (b"old", b"new"):
        with replacing(path) as file:
            file.write(content)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == [path.name]


def test_two_writers_of_one_file_disturb_each_other_in_nothing(tmp_path):
    path = tmp_path / "x"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"  # it ended last
    assert os.listdir(tmp_path) == ["x"]


def test_a_failure_names_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "x").mkdir()
    with (
        pytest.raises(WriteError, match=r"x cannot be written") as caught,
        replacing(tmp_path / "x"),
    ):
        pass
    assert ".tmp" not in str(caught.value)
    with pytest.raises(WriteError, match=r"none.x cannot"), replacing(tmp_path / "none" / "x"):
        pass


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    kept = ["notes.tmp", ".x.tmp", ".esrgan-x", "[a].bin", ".x.old.tmp", ".x~123.tmp", "x.png"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / ".folder.7.tmp").mkdir()
    for name in (".[a].bin.9.tmp", ".last.pt.123.tmp"):
        (tmp_path / name).touch()  # as version 1.0 left them
    with monkeypatch.context() as killed:  # as kill -9 does it: nothing is tidied up
        killed.setattr(Path, "unlink", lambda *args, **options: None)
        for path in (tmp_path / "[a] and more.bin", tmp_path / "y"):
            with pytest.raises(KeyboardInterrupt), replacing(path):
                raise KeyboardInterrupt
    remove_leftovers(tmp_path, "[a]")
    assert len(os.listdir(tmp_path)) == len(kept) + 3  # the folder, last.pt and y
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "none")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, ".folder.7.tmp"])


def test_names_are_shortened_apart_and_only_where_they_must_be(tmp_path):
    assert fitting(tmp_path / "a.png") == tmp_path / "a.png"
    long = [tmp_path / "none" / ("é" * 130 + ending) for ending in (".HR.jpg", ".ours.jpg", ".jpg")]
    short = [fitting(path) for path in long]
    assert len(set(short)) == 3 and {path.suffix for path in short} == {".jpg"}
    assert all(230 < len(os.fsencode(path.name)) <= longest_name(tmp_path) for path in short)
    assert [fitting(path) for path in long] == short
    assert len(os.fsencode(shortened(f"x.{'y' * 300}", 143))) == 143


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Straße 4.png", "Straße 4.png"),
        ("a\nb", r"a\nb"),
        ("\x1b[31m", r"\x1b[31m"),
        ("caf\udce9", r"caf\udce9"),
        ("gnp\u202eexe", r"gnp\u202eexe"),
        ("a\u2028b\x85", r"a\u2028b\x85"),
    ],
)
def test_a_name_is_shown_in_one_line(name, shown):
    assert printable(name) == shown


@contextmanager
def output_to_a_pipe():
    """What is read from standard output, which is a pipe of ASCII."""
    reading, writing = os.pipe()
    with pytest.MonkeyPatch.context() as patch, io.FileIO(writing, "w") as raw:
        stream = io.TextIOWrapper(raw, "ascii", write_through=True)
        for name in ("stdout", "__stdout__"):
            patch.setattr(sys, name, stream)
        patch.setattr(sys, "stderr", io.StringIO())
        yield io.FileIO(reading, "r")


def test_output_takes_any_text_line_by_line():
    with output_to_a_pipe() as pipe:
        prepare_output()
        print("ü \udce9 █")
        assert pipe.read(100) == rb"\xfc \udce9 \u2588" + os.linesep.encode()
        pipe.close()


def test_a_program_ends_as_others_do_when_nobody_reads_its_output():
    with output_to_a_pipe() as pipe:
        prepare_output()
        pipe.close()
        with pytest.raises(SystemExit) as ended:
            print("x")
        print("nothing more goes wrong", flush=True)
    assert ended.value.code == 141


def test_training_goes_on_when_nobody_reads_its_output():
    with output_to_a_pipe() as pipe:
        prepare_output(needed=False)
        pipe.close()
        for _ in range(3):
            print("x", flush=True)


def test_output_that_was_closed_before_the_program_began(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    prepare_output()
    sys.stdout.write("x")
    sys.stdout.close()


# -------------------------------------------------------------------------- threads and memory

PREPARED = """
import os
from utils import prepare_for_torch
prepare_for_torch()
print(os.environ.get("GOMP_SPINCOUNT"))
"""

AROUND = """
import ctypes, psutil, resource
from utils import prepare_for_torch, release_memory
prepare_for_torch()
import torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a fault for each page of 4 KiB
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for size in range(1, 33):
    torch.ones(size * 2**18)  # MiB
print(faults() - before)
resident = psutil.Process().memory_info().rss
release_memory()
print((resident - psutil.Process().memory_info().rss) // 2**20)
"""


def around_torch(program: str = AROUND, *args: str, **environment: str) -> list[str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "MALLOC_", "GLIBC_", "LD_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *args],
        env=clean | {"PYTHONPATH": str(Path(utils.__file__).parent)} | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts no page faults")
def test_threads_wait_briefly_unless_a_user_says_otherwise():
    def spins(**environment):
        return around_torch(PREPARED, **environment)

    assert spins() == ["3000"]
    assert spins(GOMP_SPINCOUNT="7") == ["7"]
    assert spins(OMP_WAIT_POLICY="active") == ["None"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about GNU's C library")
def test_freed_memory_stays_until_it_is_released():
    largest, total = (size * 2**20 // 4096 for size in (32, 32 * 33 // 2))  # pages
    faults, released = map(int, around_torch())
    assert faults < 4 * largest and released >= 30
    faults, _ = map(int, around_torch(MALLOC_TRIM_THRESHOLD_="131072"))
    assert faults > total / 2  # as the user says


WAITS_FOR_THE_NEXT = """
import sys
from pathlib import Path
from utils import prepare_for_torch
prepare_for_torch()
import numpy as np
from images.files import write_image
from upscaling.comparing import upscale_file
from upscaling.upscaler import Upscaler
from weights import load_generator
place, upscaler = Path(sys.argv[1]), Upscaler(load_generator("compact_x4_psnr"), "cpu", "fp32")
for side in (8, 160):
    write_image(np.zeros((side, side, 3), np.uint8), place / f"{side}.png")
    upscale_file(place / f"{side}.png", place / "out", upscaler)
    status = Path("/proc/self/status").read_text().split()
    print(*(int(status[status.index(name) + 1]) // 2**10 for name in ("VmRSS:", "VmHWM:")))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about GNU's C library")
def test_a_page_that_waits_keeps_no_memory_of_its_last_picture(tmp_path):
    printed = around_torch(WAITS_FOR_THE_NEXT, str(tmp_path))
    before, _, after, most = map(int, printed)
    assert most - before > 50 and after - before < (most - before) / 4  # MiB


def own_group(groups: Path, version: int) -> Path:
    """The folder of this process's control group, in place of the system's."""
    kind = {1: "memory", 2: ""}[version]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, name = line.split(":", 2)
        if kinds == kind:
            folder = groups / kind / name.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
            return folder
    pytest.skip(f"this system has no control groups of version {version}")


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="Linux's")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("above", [False, True])
def test_a_containers_limit_of_memory_counts(version, above, tmp_path, monkeypatch):
    """What is left of it, and what only holds copies of files; the same of a group around it."""
    monkeypatch.setattr(utils, "GROUPS", tmp_path)
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=7 * 2**30))
    folder = own_group(tmp_path, version)
    if above:
        folder = tmp_path / ("memory" if version == 1 else "")
    assert utils.available_memory() > 10**7 and utils.available_swap() == 7 * 2**30
    limit, used, *yielding = utils.GROUPS_V1 if version == 1 else utils.GROUPS_V2
    (folder / limit).write_text("9000000\n")
    (folder / used).write_text("7000000\n")
    told = "".join(f"{name} 1500000\n" for name in yielding)
    (folder / "memory.stat").write_text(f"anon 5\n{told}slab 7\n")
    assert utils.available_memory() == 5000000 and utils.available_swap() == 0
    upscaler = Upscaler(RRDBNet(features=8, blocks=1), "cpu")
    assert upscaler.tile == SMALLEST_TILE
    # The result, Pillow's copy and the file: nine bytes for each of 16 * 184^2 pixels.
    assert upscaler.fits(np.zeros((184, 184, 3), np.uint8))
    assert not upscaler.fits(np.zeros((188, 188, 3), np.uint8))
    (folder / used).write_text("13000000\n")
    assert utils.available_memory() == 0
    for unlimited in ("max", str(2**63 - 4096)):
        (folder / limit).write_text(f"{unlimited}\n")
        assert utils.available_memory() > 10**7 and utils.available_swap() == 7 * 2**30


def test_a_page_lets_go_of_a_picture_that_fails(monkeypatch, tmp_path):
    """Before it gives memory back, although the error's traceback still has its variables."""
    results = []

    def fail(held, *_):
        results.append(weakref.ref(held.rgb))
        raise OSError("no space left")

    write_image(np.zeros((8, 8, 3), np.uint8), tmp_path / "a.png")
    monkeypatch.setattr(images.files, "_encode", fail)  # its error becomes another's cause
    release = lambda device: results.append((device.type, results[0]()))  # noqa: E731
    monkeypatch.setattr(comparing, "release_memory_of", release)
    upscaler = Upscaler(RRDBNet(features=8, blocks=1), "cpu")
    with pytest.raises(UsageError, match="no space left"):
        comparing.upscale_file(tmp_path / "a.png", tmp_path / "out", upscaler)
    assert results[1:] == [("cpu", None)]


def test_free_memory_releases_where_too_little_is_free(monkeypatch):
    free, released = [5, 9], []
    memory = psutil.virtual_memory()
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: memory._replace(available=free[bool(released)])
    )
    monkeypatch.setattr(utils, "release_memory", lambda: released.append(True))
    assert utils.free_memory(5) == 5 and not released
    assert utils.free_memory(6) == 9 and released
