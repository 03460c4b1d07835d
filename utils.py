"""What every command needs: device and precision, ranks, stopping, output, files that are whole."""

import errno
import hashlib
import io
import json
import os
import pickle
import platform
import re
import secrets
import signal
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Placed = TypeVar("Placed", bound=nn.Module | Tensor)
Part = TypeVar("Part")

# Line breaks, control characters, marks that turn the direction of writing, bytes of no UTF-8.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

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


def is_lost_connection(error: RuntimeError) -> bool:
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


class StopRequest(AbstractContextManager):
    """While open, Ctrl-C or SIGTERM only asks; the loop looks at `.signal` and ends its step first.

    A second Ctrl-C interrupts at once, as usual.
    """

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self.previous = {
            number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def _ask(self, number: int, frame) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, kind, error, trace) -> None:
        signal.signal(signal.SIGINT, self.previous[signal.SIGINT])
        # An error ends the process but is shown first, although torchrun sends SIGTERM to all
        # others as soon as one process has died.
        if not isinstance(error, Exception):
            signal.signal(signal.SIGTERM, self.previous[signal.SIGTERM])


# ------------------------------------------------------------------------------- names and output


def printable(text: str) -> str:
    """The text in one line, whatever bytes the file names in it have.

    A name can break a line or steer a terminal: such characters are escaped as Python does it.
    """
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def name_length(name: str) -> int:
    """As file systems count: UTF-16 units on Windows, bytes elsewhere."""
    if sys.platform == "win32":
        return len(name.encode("utf-16-le", "surrogatepass")) // 2
    return len(os.fsencode(name))


def longest_name(folder: Path) -> int:
    """The largest `name_length` that a file in `folder` may have: 255, or 143 on eCryptfs."""
    above = (folder.absolute(), *folder.absolute().parents)
    there = next(path for path in above if os.path.exists(path))
    try:
        limit = os.pathconf(there, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows has no such call
        limit = -1
    return limit if limit > 0 else 255


def fitting(path: Path) -> Path:
    """The path; where its name is too long, with one that is `shortened`."""
    return path.with_name(shortened(path.name, longest_name(path.parent)))


def shortened(name: str, limit: int) -> str:
    """The name, or if its `name_length` is above `limit` one that no other name becomes."""
    if name_length(name) <= limit:
        return name
    suffix = Path(name).suffix
    ending = f"~{digest(name)}{suffix if len(suffix) < 12 else ''}"
    while name_length(name + ending) > limit:
        name = name[:-1]
    return name + ending


def digest(name: str) -> str:
    """A name in 8 characters."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]


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
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for the rest of the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
            raw = getattr(stream.buffer, "raw", stream.buffer)
            if type(raw) is io.FileIO and stream is getattr(sys, f"__{name}__"):
                writer = io.BufferedWriter(_Output(stream.fileno(), needed))
                encoding, errors = stream.encoding, stream.errors
                setattr(sys, name, io.TextIOWrapper(writer, encoding, errors, line_buffering=True))


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
            if not self.needed:
                return len(data)
            # Windows calls a pipe without a reader an invalid argument.
            broken = error.errno == errno.EPIPE or sys.platform == "win32"
            raise SystemExit(141 if broken else f"output cannot be written: {error}") from None


# -------------------------------------------------------------------------------------------- files


class UnreadableError(ValueError):
    """A file of weights that cannot be read; the message is the reason, "it is cut short"."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` once the block has ended without an error.

    Anyone who opens `path` meanwhile, or after a kill, finds the old content whole.
    """
    # Short, since names have a limit that `path` may come close to; unlike any other writer's.
    temporary = path.with_name(f".esrgan-{digest(path.name)}-{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        if str(error.filename) == str(temporary):  # which nobody has heard of
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete the halves of files, in depth, that killed processes left of `replacing` them.

    Nobody may be writing there now.

    Args:
        folder: where.
        name: of the file that was to be replaced; None: of any.
    """
    whose = "[0-9a-f]{8}" if name is None else digest(name)
    earlier = ".+" if name is None else re.escape(name)  # version 1.0 wrote .NAME.PID.tmp
    leftover = re.compile(
        rf"\.esrgan-{whose}-[0-9a-f]{{12}}\.tmp|\.{earlier}\.[1-9]\d*\.tmp", re.DOTALL
    )
    for root, _, files in os.walk(folder):
        for file in filter(leftover.fullmatch, files):
            Path(root, file).unlink(missing_ok=True)


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
    content = Path(path).read_bytes()  # its own functions open no path that is not UTF-8
    tensors = safetensors.torch.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, header.get("__metadata__") or {}


def _load_pickle(path: str | Path) -> object:
    with open(path, "rb") as file:  # given the path, newer torch goes by the suffix
        if file.read(2) == b"PK" and not zipfile.is_zipfile(path):
            raise EOFError  # torch would take what is left of its zip file for another format
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


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
        code = f"it asks to run code ({wanted[1]}), which is refused" if wanted else None
        return code or "torch.save did not write it"
    if "legacy .tar" in text:
        return "torch.save has not written such files since 2017"
    cut_short = (
        *("central directory", "incomplete", "invalid header", "truncated"),
        "Ran out of input",
    )
    if isinstance(error, EOFError) or any(sign in text for sign in cut_short):
        return "it is cut short; get it again"
    return text.splitlines()[0] if text else type(error).__name__
