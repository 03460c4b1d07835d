"""What every command needs: device and precision, ranks, stopping, files that are whole."""

import atexit
import errno
import functools
import multiprocessing
import os
import pickle
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import safetensors
import torch
import torch.distributed as dist
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if sys.platform != "win32":
    import fcntl

Placed = TypeVar("Placed", bound=nn.Module | Tensor)
Part = TypeVar("Part")

# ----------------------------------------------------------------------------- device and precision


class DeviceError(ValueError):
    """A device that is not there, or processes that cannot share the work."""


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """CUDA, then MPS, then CPU; or the one that is named.

    Args:
        name: auto, cuda, mps or cpu.
        local_rank: which of a machine's GPUs, when each has a process of its own.

    Raises:
        DeviceError: the named one is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise DeviceError(
            f"device is {name!r}: torch {torch.__version__} finds none here; use auto"
        )
    if name != "cuda":
        return torch.device(name)
    if local_rank >= torch.cuda.device_count():
        raise DeviceError(
            f"process {local_rank} of this machine has no GPU: there are "
            f"{torch.cuda.device_count()}; give torchrun that --nproc_per_node"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of convolutions: bf16 where the hardware computes it natively, otherwise fp32."""
    if name == "auto":
        name = "bf16" if has_native_bf16(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def has_native_bf16(device: torch.device) -> bool:
    """Emulated bf16 works everywhere and is slower than fp32, so being able to run says nothing."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and platform.system() == "Linux":
        flags = Path("/proc/cpuinfo").read_text().split()
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to `dtype`; for fp32, a context that does nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def place(thing: Placed, device: torch.device) -> Placed:
    """A network or images (N, C, H, W), on the device, in the memory format it computes fastest."""
    moving: Any = thing  # networks and tensors take the same arguments, whatever their types say
    if device.type == "mps":
        return moving.to(device)
    return moving.to(device, memory_format=torch.channels_last)


def peak_memory(device: torch.device) -> float | None:
    """GiB: the most that tensors took on the GPU, or this process on the CPU; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "linux":
        # Not ru_maxrss, which begins at what the process that started this one had.
        status = Path("/proc/self/status").read_text()
        if peak := re.search(r"VmHWM:\s+(\d+) kB", status):  # some containers leave it out
            return int(peak[1]) / 2**20
    try:
        import resource  # POSIX only
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what Python, NumPy, a CPU's or a GPU's allocator raise when it is full."""
    signs = ("allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc", "bad allocation")
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


# -------------------------------------------------------------------------------------------- ranks


@dataclass(frozen=True)
class Ranks(AbstractContextManager):
    """The processes that train one run together: those of torchrun, or this one alone.

    Args:
        rank: this process's number. Number 0 writes and logs, for all.
        count: how many there are, on all machines.
        local: this process's number on its machine, which is its GPU's.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def of_torchrun(cls) -> "Ranks":
        names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
        return cls(*(int(os.environ.get(name, alone)) for name, alone in names.items()))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> "Ranks":
        if self.count > 1:
            # CPU tensors, the control messages, go over gloo even where the networks are on GPUs.
            # An hour: while the first process validates or writes, the others wait.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=timedelta(hours=1))
        return self

    def __exit__(self, kind, error, trace) -> None:
        # After a fault the others may never answer; then the process just ends.
        if self.count > 1 and (kind is None or kind is SystemExit):
            dist.destroy_process_group()

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network whose backward pass averages gradients over the ranks."""
        if self.count == 1:
            return net
        # Buffers are batch norm's running statistics, which training does not read; sending them
        # out would change them between the two forward passes of the discriminator's step.
        return DistributedDataParallel(net, broadcast_buffers=False)

    def mean(self, values: Tensor) -> Tensor:
        if self.count == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.count

    def largest(self, number: int) -> int:
        if self.count == 1:
            return number
        tensor = torch.tensor(number)  # on the CPU, so that no GPU is waited for
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def average_buffers(self, net: nn.Module) -> None:
        """Give all ranks the same batch norm statistics, of which each gathered its own."""
        for buffer in net.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.mean(buffer))

    def gather(self, own: list) -> list:
        """The lists of all ranks, one after the other."""
        if self.count == 1:
            return own
        everyone: list[list] = [[]] * self.count
        dist.all_gather_object(everyone, own)
        return [item for part in everyone for item in part]


def is_lost_connection(error: Exception) -> bool:
    """Whether this is what gloo or NCCL raise when another rank is gone."""
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text


def accumulated(parts: Iterable[Part], net: nn.Module) -> Iterator[Part]:
    """The parts of a batch; the ranks exchange the gradients of `net` with the last one's only."""
    *others, last = parts
    for part in others:
        with net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext():
            yield part
    yield last


# ----------------------------------------------------------------------------------------- stopping


# What asks a program to end: Ctrl-C, `kill`, a terminal that is closed (POSIX only).
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


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


# -------------------------------------------------------------------------------------------- files


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` once the block has ended without an error.

    Anyone who opens `path` meanwhile, or after a kill, finds the old content whole.

    Raises:
        OSError: the block's, or one that says that the disk of `path` is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming_full_disk(path), open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete the halves of files, in depth, that killed processes left of `replacing` them.

    Nobody may be writing there now.
    """
    for leftover in folder.rglob(f".{name}.*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, kept: str = "") -> Iterator[None]:
    """Let a failure to write tell which file it was, and what to do; a full disk does not.

    Args:
        path: what the block writes.
        kept: what is still there, for the message.

    Raises:
        OSError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}){kept}. "
            f"{'Make room' if full else 'Mend that'}, then give the same command again."
        ) from error


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """While `path` is written: when there is no room, the error says where, and what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save trips over the file that it could not finish, and hides why it could not.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno not in NO_ROOM:
            raise
        reason = f"{cause.strerror}; {NO_ROOM[cause.errno](path)}"
        raise OSError(cause.errno, reason, path) from error


def free_space(folder: Path) -> str:
    usage = shutil.disk_usage(folder)
    return f"the disk of {folder} has {gigabytes(usage.free)} free of {gigabytes(usage.total)}"


NO_ROOM = {
    errno.ENOSPC: lambda path: f"{free_space(path.parent)}: make room there",
    errno.EDQUOT: lambda path: f"make room in your quota on the disk of {path.parent}",
    errno.EFBIG: lambda path: f"the disk of {path.parent}, or a limit (ulimit -f), allows no more",
}


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


# ------------------------------------------------------------------------------------------- locks


@contextmanager
def locked(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Be the only process in the block, among all that name the same `path`.

    Where the file system has no locks, as on some clusters, a file beside `path` stands for one. It
    stays when its process is killed on another machine, so who wrote it is told.

    Args:
        path: the lock's file, which stays there.
        busy: called where another process has it, with what is known of that one: nothing, or
            " (process 12 on node7, since ...)". It raises, or returns to wait for the lock.

    Raises:
        OSError: the lock's file cannot be made.
    """
    native = has_locks(path.parent)
    marker = path.with_name(f"{path.name}.held")
    lock: BaseFileLock = FileLock(path) if native else SoftFileLock(marker)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        busy("" if native else holder(marker))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def has_locks(folder: Path) -> bool:
    """Whether the file system knows flock: tried on a file that nobody else has."""
    if sys.platform == "win32":
        return True
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS):
                return False
            raise
    return True


def holder(path: Path) -> str:
    """Whose a SoftFileLock is, and what to do if that process is gone."""
    try:
        pid, host, *_ = [*path.read_text().split(), "?", "?"]
        since = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    except OSError:  # let go at this moment
        return ""
    return f" (process {pid} on {host}, since {since}; if it is gone, delete {path})"


# --------------------------------------------------------------------------------- files of weights


class UnreadableError(ValueError):
    """A file of weights that cannot be read; the message is the reason, "it is cut short"."""


def load_tensors(path: str | Path) -> tuple[object, dict[str, str]]:
    """What torch.save or safetensors wrote, whatever the file is called, onto the CPU.

    No code that a pickle may hold is run.

    Returns:
        The content, and the metadata of a safetensors file ({} of others).

    Raises:
        UnreadableError: anything else, or a damaged file.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(512)
        if complaint := _complaint(start):
            raise UnreadableError(complaint)
        return _load_safetensors(path) if start[8:9] == b"{" else (_load_pickle(path), {})
    except UnreadableError:
        raise
    except Exception as error:  # a damaged file fails in a dozen ways, all of them the file's
        raise UnreadableError(_reason(error)) from error


def _load_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _load_pickle(path: str | Path) -> object:
    with open(path, "rb") as file:  # given the path, newer torch goes by the suffix
        if file.read(2) == b"PK":
            _check_zip(path)
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_zip(path: str | Path) -> None:
    """Refuse a zip file that is damaged; torch would load other numbers from it, or another format.

    Raises:
        EOFError: it is cut short.
        UnreadableError: an entry is not what its checksum says.
    """
    if not zipfile.is_zipfile(path):
        raise EOFError
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                _check_entry(archive, entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise UnreadableError(f"it is damaged ({error}); get it again") from error


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    if entry.external_attr & 0x10 and entry.file_size:  # torch would read nothing into its tensor
        raise zipfile.BadZipFile(f"{entry.filename} is marked as a folder")
    if entry.CRC == 0:  # left out, by torch.serialization.set_crc32_options(False)
        return
    with archive.open(entry) as file:
        while file.read(2**20):  # the checksum is compared at the end
            pass


def _complaint(start: bytes) -> str:
    """What a file that begins like this is instead of weights; empty if it may hold some."""
    if not start:
        return "it is empty; get it again"
    if start.lstrip().startswith(b"<"):
        return "it is a web page; download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "it only points at the file in Git LFS; run `git lfs pull`"
    return ""


def _reason(error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return "it is a TorchScript program, which can carry code; save its state_dict instead"
    if isinstance(error, pickle.UnpicklingError):
        wanted = re.search(r"GLOBAL (\S+)", text)  # a function or class that the file wants called
        if wanted:
            refusal = f"it asks to run code ({wanted[1]}), which is refused"
            return f"{refusal}; save the network's state_dict() instead, which needs none"
        return "torch.save did not write it"
    if "legacy .tar" in text:
        return "torch.save has not written such files since 2017"
    cut_short = (
        *("central directory", "incomplete", "invalid header", "truncated"),
        "Ran out of input",
    )
    if isinstance(error, EOFError) or any(sign in text for sign in cut_short):
        return "it is cut short; get it again"
    return text.splitlines()[0] if text else type(error).__name__
