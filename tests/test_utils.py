"""Devices and precisions, files that are written whole, stopping, names and output."""

import io
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import utils
from utils import (
    DeviceError,
    StopRequest,
    choose_device,
    choose_precision,
    fitting,
    longest_name,
    prepare_output,
    printable,
    remove_leftovers,
    replacing,
    shortened,
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
    with pytest.raises(OSError, match=r"x'$") as caught, replacing(tmp_path / "x"):
        pass
    assert ".tmp" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"none.x'$"), replacing(tmp_path / "none" / "x"):
        pass


def test_leftovers_are_those_of_the_very_file_and_none_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "sub [a]").mkdir()
    kept = ["notes.tmp", ".x.tmp", ".x.old.tmp", ".esrgan-x.tmp", "[a].bin", ".x.0.tmp"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / ".x.7.tmp").mkdir()
    with monkeypatch.context() as killed:  # as kill -9 does it: nothing is tidied up
        killed.setattr(Path, "unlink", lambda *args, **options: None)
        for path in (tmp_path / "sub [a]" / "[a].bin", tmp_path / "y"):
            with pytest.raises(KeyboardInterrupt), replacing(path):
                raise KeyboardInterrupt
    (tmp_path / ".[a].bin.123.tmp").touch()  # as version 1.0 left it
    remove_leftovers(tmp_path, "[a].bin")
    assert not os.listdir(tmp_path / "sub [a]")
    assert len(os.listdir(tmp_path)) == len(kept) + 3  # and what was to become y
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "sub [a]", ".x.7.tmp"])


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
