"""What every command needs, all without torch: stopping, words, output, files that are whole."""

import atexit
import ctypes
import errno
import functools
import io
import math
import multiprocessing
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

from tqdm import tqdm

MINUTE = 60  # seconds between two lines about progress, where there is no terminal
PATIENCE = 10 if sys.platform == "win32" else 0  # seconds, with files that others have open

# Line breaks, control characters, marks that turn the direction of writing, bytes of no UTF-8.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# ----------------------------------------------------------------------------------------- stopping


# What asks a program to end: Ctrl-C, `kill`, a terminal that is closed (POSIX only), Ctrl-Break
# (Windows only).
STOP_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
STOPS = [getattr(signal, name) for name in STOP_NAMES if hasattr(signal, name)]


class StopRequest(AbstractContextManager):
    """While open, a signal of `STOPS` only asks; the loop looks at `.signal` and saves first.

    It is answered at once in words, for a step or a validation can take a while. People press
    Ctrl-C again when nothing seems to happen, so only the third interrupts.

    Args:
        speaks: False on ranks whose answer would repeat the first one's.
    """

    def __init__(self, speaks: bool = True):
        self.speaks = speaks
        self.signal: int | None = None
        self.presses = 0

    def __enter__(self) -> "StopRequest":
        # nohup's children begin with SIGHUP ignored, and should outlive the terminal.
        nohup = [n for n in STOPS[2:] if signal.getsignal(n) == signal.SIG_IGN]
        heard = [number for number in STOPS if number not in nohup]
        self.previous = {number: signal.signal(number, self._ask) for number in heard}
        return self

    def _ask(self, number: int, frame) -> None:
        self.signal = self.signal or number
        self.presses += number == signal.SIGINT
        if self.presses == 3:
            raise KeyboardInterrupt
        if self.speaks:
            more = "Ctrl-C once more" if self.presses == 2 else "A third Ctrl-C"
            answer = f"\nStopping: this step ends first, then all is saved. {more} would lose it.\n"
            # Unbuffered: the signal may have come in the midst of a print.
            with suppress(OSError):  # a closed terminal
                os.write(2, answer.encode())

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self.previous.items():
            # An error ends the process but is shown first, although torchrun sends SIGTERM to all
            # others as soon as one process has died.
            if number == signal.SIGINT or not isinstance(error, Exception):
                signal.signal(number, handler)


def hear_kill() -> None:
    """Have SIGTERM and a closed terminal raise KeyboardInterrupt, too.

    Otherwise they end the process at once, and what is written half stays in its folder.
    """
    heard = [n for n in STOPS[1:] if signal.getsignal(n) != signal.SIG_IGN]  # as nohup has SIGHUP

    def interrupt(*_) -> NoReturn:
        for number in heard:  # a second one would interrupt the tidying up
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in heard:
        signal.signal(number, interrupt)


def result_of(future: Future) -> Any:
    """Its result, once it is there; Ctrl-C is heard meanwhile.

    On Windows, Python before 3.14 does not hear it while it waits without an end.
    """
    while not future.done():
        wait([future], timeout=0.5)
    try:
        return future.result()
    finally:
        del future  # which an error would hold, and its traceback all that the failed call had


def usable_cores() -> int:
    """Of this process: fewer than the machine has under taskset, or in a batch system."""
    if hasattr(os, "sched_getaffinity"):  # on Linux alone
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_init() -> Callable[[int], None]:
    """For a DataLoader: its workers leave signals to this process, and end when it does."""
    ending = multiprocessing.RawValue("b", 0)
    atexit.register(setattr, ending, "value", 1)  # before multiprocessing's own last act
    return functools.partial(_follow_parent, ending)


def _follow_parent(ending: Any, worker: int) -> None:
    # A terminal sends Ctrl-C, and a batch system SIGTERM, to all processes of a run.
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    # When Python ends, multiprocessing ends what is left by SIGTERM, and waits for it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.value else None)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.excepthook = _leave_out_lost_connections


def _leave_out_lost_connections(kind: type[BaseException], error: BaseException, trace) -> None:
    """The parent stopped while a thread of this worker handed it a batch: it says why itself."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


# -------------------------------------------------------------------------------------------- words


def listed(items: Sequence[str], most: int = 5) -> str:
    """Items of which there may be thousands: "a.png, b.png, c.png and 2,997 others"."""
    others = len(items) - most
    if others <= 0:
        return ", ".join(items)
    return f"{', '.join(items[:most])} and {others:,} other{'s' if others > 1 else ''}"


# ------------------------------------------------------------------------------- names and output


def printable(text: str) -> str:
    """The text in one line, whatever bytes the file names in it have.

    A name can break a line or steer a terminal: such characters are escaped as Python does it.
    """
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def prepare_output(needed: bool = True) -> None:
    """Make standard output and error take any text, and outlive whoever reads them.

    What their encoding has no character for is escaped, and each line goes out at once.

    Args:
        needed: when nobody reads any more, the program ends with status 141, as one that SIGPIPE
            ends, or 1 where a disk is full. Otherwise it goes on, and prints nothing more.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the program began
            setattr(sys, name, nowhere())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
            raw = getattr(stream.buffer, "raw", stream.buffer)
            if type(raw) is io.FileIO and stream is getattr(sys, f"__{name}__"):
                writer = io.BufferedWriter(_Output(stream.fileno(), needed))
                encoding, errors = stream.encoding, stream.errors
                setattr(sys, name, io.TextIOWrapper(writer, encoding, errors, line_buffering=True))


def nowhere() -> TextIO:
    """Takes any text, whatever the system's encoding is, and keeps none."""
    return open(os.devnull, "w", encoding="utf-8", errors="replace")


class _Output(io.FileIO):
    """A stream's file, which takes no more once it has failed."""

    def __init__(self, descriptor: int, needed: bool):
        super().__init__(descriptor, "w", closefd=False)
        self.needed, self.failed = needed, False

    def write(self, data: Any) -> int:
        if self.failed:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.failed = True
            # A closed terminal stops the program, too: then tidying up comes first.
            if not self.needed or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
                return len(data)
            # Windows calls a pipe without a reader an invalid argument.
            broken = error.errno == errno.EPIPE or sys.platform == "win32"
            raise SystemExit(141 if broken else f"output cannot be written: {error}") from None


class Bar(tqdm):
    """tqdm's bar; where standard error is no terminal but a log, a line a minute and one at last.

    Attributes:
        silent: whether no bar at all is shown.
    """

    silent = False

    def __init__(self, *arguments: Any, **options: Any):
        self.in_place = getattr(sys.stderr, "isatty", bool)()
        self.spoken = time.monotonic()  # when the last line was written, or the bar begun
        if not self.in_place:
            options["file"] = io.StringIO()  # takes what moves a terminal's cursor
        super().__init__(*arguments, disable=Bar.silent, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.in_place:
            super().display(msg, pos)
        elif time.monotonic() - self.spoken >= MINUTE:
            self.spoken = time.monotonic()
            print(self, file=sys.stderr)

    def close(self) -> None:
        if not self.disable:
            self.spoken = -math.inf if self.leave else math.inf  # it is time for a line, or never
        super().close()


@contextmanager
def silence() -> Iterator[None]:
    """Without bars and standard output; what goes to standard error still comes."""
    with nowhere() as nothing, redirect_stdout(nothing):
        Bar.silent = True
        try:
            yield
        finally:
            Bar.silent = False


# ------------------------------------------------------------------------------ threads and memory


M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h

GROUPS = Path("/sys/fs/cgroup")  # where Linux shows the control groups that limit containers
# The files of one: its limit and what is taken of it; and in memory.stat, what of that are copies
# of files, which give way.
GROUPS_V1 = (
    *("memory.limit_in_bytes", "memory.usage_in_bytes"),
    *("total_inactive_file", "total_active_file"),
)
GROUPS_V2 = ("memory.max", "memory.current", "inactive_file", "active_file")


def prepare_for_torch() -> None:
    """Threads that wait fall asleep soon, and freed memory stays; call it before torch's import.

    GNU's OpenMP spins for milliseconds where a thread waits for the others. If another process has
    the core of one of them, the rest burn theirs meanwhile, at each layer of a network. And glibc
    gives a large array's pages back as soon as it is freed, so that the system has to clear others
    for the next layer's. What both cost is in benchmarks/README.md.

    A user's own OMP_WAIT_POLICY, GOMP_SPINCOUNT, GLIBC_TUNABLES and MALLOC_... win.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    chosen = any(name.startswith(("GLIBC_TUNABLES", "MALLOC_")) for name in os.environ)
    if (glibc := _glibc()) and not chosen:
        glibc.mallopt(M_MMAP_MAX, 0)
        glibc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        glibc.mallopt(M_ARENA_MAX, 1)  # those of other threads cannot hold large arrays


def free_memory(wanted: int) -> int:
    """Bytes that are free; if those are too few, first this process releases what it keeps."""
    if available_memory() < wanted:
        release_memory()
    return available_memory()


def available_memory() -> int:
    """Bytes that this process can still get: of the system, or of a container that has less."""
    import psutil  # which the answer to --help does not need

    return min([psutil.virtual_memory().available, *_left_in_groups()])


def available_swap() -> int:
    """Bytes of swap space; none in a container with a limit, which may not be allowed any."""
    import psutil

    if _left_in_groups():
        return 0
    try:
        return psutil.swap_memory().free
    except (OSError, RuntimeError):  # Windows may have its performance counters turned off
        return 0


def _left_in_groups() -> list[int]:
    """Bytes that each control group with a limit leaves to this process."""
    left: list[int] = []
    for folder, (limit, taken, *yielding) in _control_groups(GROUPS):
        with suppress(OSError, ValueError):  # no such file, or the word max: no limit
            most, used = (int((folder / name).read_text()) for name in (limit, taken))
            told = (folder / "memory.stat").read_text()
            files = re.findall(rf"^(?:{'|'.join(yielding)}) (\d+)$", told, re.MULTILINE)
            # In version 1, no limit is a number close to 2^63.
            left += [max(0, most - used + sum(map(int, files)))] if most < 2**62 else []
    return left


def _control_groups(groups: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Folders of those that may limit this process's memory, and what is called how in them."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # other systems have none
        return
    for line in lines:
        _, kinds, name = line.split(":", 2)
        if kinds in ("", "memory"):
            own, top = groups / kinds / name.lstrip("/"), groups / kinds
            folders = [folder for folder in (own, *own.parents) if folder.is_relative_to(top)]
            yield from ((folder, GROUPS_V1 if kinds else GROUPS_V2) for folder in folders)


def release_memory() -> None:
    """Give back to the system what is free, and stayed since `prepare_for_torch`."""
    if glibc := _glibc():
        glibc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is GNU's."""
    library = ctypes.CDLL(None) if os.name == "posix" else None
    return library if hasattr(library, "mallopt") else None


# -------------------------------------------------------------------------------------------- files


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` once the block has ended without an error.

    Anyone who opens `path` meanwhile, or after a kill or a power cut, finds the old content whole.

    Raises:
        WriteError: it cannot be written.
    """
    # Short, since names have a limit that `path` may come close to; unlike any other writer's.
    temporary = path.with_name(f".{path.name[:20]}~{secrets.token_hex(6)}.tmp")
    try:
        with naming(path, temporary):
            with open(temporary, "x+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # a name may reach the disk long before what it names
            put(temporary, path)
    finally:
        with suppress(OSError):  # of a disk that is gone, say; why it was not written counts more
            temporary.unlink(missing_ok=True)


def put(temporary: Path, path: Path) -> None:
    """In the place of `path`. On Windows that fails for as long as a program has either open."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return os.replace(temporary, path)
        except PermissionError:
            if time.monotonic() >= end:
                raise
        time.sleep(0.1)


def remove_leftovers(folder: Path, start: str = "") -> None:
    """Delete the halves of files in a folder that killed processes left of `replacing` them.

    Nobody may be writing there now, under names that begin with `start`.
    """
    if not folder.is_dir():
        return
    # Version 1.0 named them .last.pt.123.tmp, with a process's number.
    leftover = re.compile(rf"\.{re.escape(start)}.*(~[0-9a-f]{{12}}|\.\d+)\.tmp", re.DOTALL)
    for path in folder.iterdir():
        if leftover.fullmatch(path.name) and path.is_file():
            with suppress(OSError):  # it may be another user's
                path.unlink()


class WriteError(OSError):
    """A file that cannot be written; the sentence names it, the cause and the remedy."""

    def __init__(self, sentence: str, number: int | None = None):
        super().__init__(sentence)
        self.errno = number


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """While `path` is written: the system's errors, of which some name no file, become clear.

    Args:
        path: what the block writes.
        temporary: where it writes that at first.

    Raises:
        WriteError: it cannot be written; `errno` is the system's.
    """
    try:
        yield
    except (WriteError, InterruptedError):  # the latter is no fault of the file's
        raise
    except (OSError, RuntimeError) as error:
        # torch.save trips over the file that it could not finish, and hides why it could not.
        cause = error if isinstance(error, OSError) else error.__context__
        files = (None, str(path), str(temporary))
        if not isinstance(cause, OSError) or (cause.filename and str(cause.filename) not in files):
            raise
        kept = "; the one before it is intact" if temporary and path.is_file() else ""
        remedy = NO_ROOM.get(cause.errno or 0, lambda path: "Fix that")(path)
        reason = f"{path} cannot be written ({cause.strerror or cause}){kept}. {remedy}"
        raise WriteError(f"{reason}, then give the same command again.", cause.errno) from error


NO_ROOM = {
    errno.ENOSPC: lambda path: f"Make room there ({free_space(path.parent)})",
    errno.EDQUOT: lambda path: "Make room in your quota there",
    errno.EFBIG: lambda path: "Its disk, or `ulimit -f`, allows no larger file: raise that limit",
}


def free_space(folder: Path) -> str:
    usage = shutil.disk_usage(nearest(folder))
    return f"the disk of {folder} has {gigabytes(usage.free)} free of {gigabytes(usage.total)}"


def is_writable(folder: Path) -> bool:
    """Found by writing: os.access knows nothing of Windows' access lists."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there; if not even its drive is, that."""
    above = (folder.absolute(), *folder.absolute().parents)
    return next((path for path in above if os.path.exists(path)), above[-1])


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
