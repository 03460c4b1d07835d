"""What keeps a run alive: device and precision, checkpoint files, EMA, stopping, logging."""

import json
import math
import os
import platform
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

# --------------------------------------------------------------------------- device and precision


class DeviceError(ValueError):
    """A device that is not there."""


def choose_device(name: str = "auto") -> torch.device:
    """CUDA, then MPS, then CPU; or the one that is named.

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
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of convolutions: bf16 where the hardware computes it natively, otherwise fp32."""
    if name == "auto":
        name = "bf16" if has_native_bf16(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


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


def place(thing: nn.Module | torch.Tensor, device: torch.device) -> nn.Module | torch.Tensor:
    """A network or images (N, C, H, W), on the device, in the memory format it computes fastest."""
    if device.type == "mps":
        return thing.to(device)
    return thing.to(device, memory_format=torch.channels_last)


# ------------------------------------------------------------------------------- checkpoint files


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the cause and the remedy."""


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` whole or not at all: a kill at any moment leaves the old file or the new."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
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

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------- logging


class RunLog(AbstractContextManager):
    """`metrics.jsonl`, one JSON object per validation, and TensorBoard events, in a run's folder.

    Args:
        folder: the run's.
        keep: whether a row that an earlier process logged stays. Those of steps that are about to
            be done again must go; so does a line that a kill cut short.
        step: the run's step, counted over both phases, that it goes on from.
    """

    def __init__(self, folder: Path, keep: Callable[[dict], bool], step: int):
        self.metrics = folder / "metrics.jsonl"
        if self.metrics.exists():
            lines = self.metrics.read_text().splitlines()
            kept = [line for line in lines if line.endswith("}") and keep(json.loads(line))]
            temporary = self.metrics.with_name("metrics.jsonl.tmp")
            temporary.write_text("".join(f"{line}\n" for line in kept))
            os.replace(temporary, self.metrics)
        self.board = SummaryWriter(str(folder), purge_step=step + 1)

    def metric(self, row: dict) -> None:
        """Append a row, `run_step` among its fields, and draw its numbers."""
        # JSON has no infinity, which is the PSNR of equal images.
        finite = {k: None if v in (math.inf, -math.inf) else v for k, v in row.items()}
        with open(self.metrics, "a") as file:
            file.write(json.dumps(finite) + "\n")
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        self.scalars("validation", numbers, row["run_step"])

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.board.add_scalar(f"{group}/{name}", value, step)

    def picture(self, name: str, image, step: int) -> None:
        """`image`: uint8, (H, W, 3)."""
        self.board.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        self.board.flush()

    def __exit__(self, *exception) -> None:
        self.board.close()
