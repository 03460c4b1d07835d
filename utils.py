"""What keeps a run alive: device, precision, ranks, safe steps, checkpoint files, EMA, stopping."""

import os
import platform
import re
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

# --------------------------------------------------------------------------- device and precision


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


def place(thing: nn.Module | Tensor, device: torch.device) -> nn.Module | Tensor:
    """A network or images (N, C, H, W), on the device, in the memory format it computes fastest."""
    if device.type == "mps":
        return thing.to(device)
    return thing.to(device, memory_format=torch.channels_last)


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


# ------------------------------------------------------------------------------------------ ranks


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
        everyone = [None] * self.count
        dist.all_gather_object(everyone, own)
        return [item for part in everyone for item in part]


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether this is what gloo or NCCL raise when another rank is gone."""
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text


def keeping_gradients_here(net: nn.Module) -> AbstractContextManager:
    """While open, backward passes only add up gradients on their own rank."""
    return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()


# ------------------------------------------------------------------------------------- safe steps


def make_adam(net: nn.Module, betas: tuple[float, float], device: torch.device) -> torch.optim.Adam:
    # The fused one can be told on the device to skip a step (found_inf): no waiting for a GPU.
    return torch.optim.Adam(net.parameters(), betas=betas, fused=device.type != "mps")


class SafeStep:
    """Optimizer steps that are skipped, on the device, where a gradient is not finite.

    That is what a GradScaler does for fp16. Here it serves every precision: for bf16 and fp32 its
    loss scale stays at 1. (MPS has no such scaler: there nothing is skipped, only counted.)

    Args:
        device, dtype: of the run.
        clip: largest norm of a network's gradient; 0: any.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, clip: float):
        self.dynamic, self.clip = dtype == torch.float16, clip
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=2.0**16 if self.dynamic else 1.0, enabled=device.type != "mps"
        )

    def backward(self, loss: Tensor) -> None:
        # If the loss is not finite, this makes every gradient nan, which averaging then carries
        # to all ranks: so all of them skip the same steps. Otherwise it is a factor of 1.
        self.scaler.scale(loss * (1 + 0 * loss.detach())).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip, step if all is finite; returns the gradient's norm before clipping."""
        self.scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.clip > 0:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        self.scaler.step(optimizer)
        return norm

    def update(self) -> None:
        """Once a training step, after all optimizers."""
        if self.dynamic:
            self.scaler.update()
        elif self.scaler.is_enabled():
            self.scaler.update(1.0)

    def state_dict(self) -> dict:
        return self.scaler.state_dict() if self.dynamic else {}

    def load_state_dict(self, state: dict) -> None:
        if self.dynamic and state:  # a run may change its precision
            self.scaler.load_state_dict(state)


# ------------------------------------------------------------------------------- checkpoint files


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the cause and the remedy."""


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` whole or not at all: a kill at any moment leaves the old file or the new.

    Raises:
        OSError: it cannot be written (a full disk, say); the old file is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save trips over the file that it could not finish, and hides why it could not.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        kept = "; the one before it is intact" if path.exists() else ""
        raise OSError(
            f"{path} cannot be written ({cause.strerror or cause}){kept}. "
            "Make room, then give the same command again."
        ) from cause
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict:
    """Read what `save_checkpoint` wrote, onto the CPU, without running any code it may hold.

    Raises:
        CheckpointError: not a file that `save_checkpoint` wrote, or a damaged one.
    """
    try:
        # weights_only refuses pickles that would run code.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in a dozen ways, all of them the file's
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({reason}). "
            "Move it away to start afresh, or choose another --name."
        ) from error


# -------------------------------------------------------------------------------------------- EMA


@torch.no_grad()
def update_ema(ema: nn.Module, net: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * net for every parameter; buffers are copied."""
    get_ema_multi_avg_fn(decay)(list(ema.parameters()), list(net.parameters()), None)
    for ema_buffer, buffer in zip(ema.buffers(), net.buffers(), strict=True):
        ema_buffer.copy_(buffer)


# --------------------------------------------------------------------------------------- stopping


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
        # An error ends the process, but is told first: torchrun sends SIGTERM to all others as soon
        # as one process has died.
        if not isinstance(error, Exception):
            signal.signal(signal.SIGTERM, self.previous[signal.SIGTERM])
