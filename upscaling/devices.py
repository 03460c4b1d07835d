"""Where a network computes: the device, the precision, the memory format."""

import errno
import platform
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from utils import available_memory, release_memory

Placed = TypeVar("Placed", bound=nn.Module | Tensor)

# What pip installs on Windows.
NO_CUDA = (
    "this torch was built without CUDA (https://pytorch.org/get-started/locally/ shows the line "
    "that installs one with it)"
)


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
    if automatic := name == "auto":
        name = next(device for device, there in available.items() if there)
        without_cuda = name == "cpu" and not torch.backends.cuda.is_built()
        if without_cuda and shutil.which("nvidia-smi") and local_rank == 0:
            print(f"The NVIDIA GPU of this machine is not used: {NO_CUDA}", file=sys.stderr)
    if not available[name]:
        if name == "cuda" and not torch.backends.cuda.is_built():
            raise DeviceError(f"device is 'cuda': {NO_CUDA}; or use auto")
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
    device = torch.device("cuda", local_rank)
    if fault := fault_of(device):
        if not automatic:
            raise DeviceError(f"device is 'cuda', but {fault}; or use --device cpu")
        print(f"The GPU of this machine is not used: {fault}", file=sys.stderr)
        return torch.device("cpu")
    return device


def fault_of(device: torch.device) -> str:
    """Why a GPU that torch finds computes nothing; empty if it does.

    Newer torch has no kernels for older GPUs (before the RTX 20 series, say), and finds them.

    Raises:
        DeviceError: it is taken by another process, say.
    """
    try:
        return "" if (torch.ones(1, device=device) + 1).item() == 2 else "it miscalculates"
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if "no kernel image" not in reason:
            clear = f"the GPU cannot be used now ({reason}); free it, or use --device cpu"
            raise DeviceError(clear) from error
        advice = "an older GPU takes an older torch: https://pytorch.org/get-started/locally/"
        return f"torch {torch.__version__} cannot compute on it ({reason}); {advice}"


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
    wanted = dtype != torch.float32
    # Older torch warns of fp32 on MPS, even where autocast is off.
    return torch.autocast(device.type, dtype if wanted else None, enabled=wanted)


@contextmanager
def computing(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`, where fp32 is that on NVIDIA GPUs, too.

    From Ampere on their convolutions would round fp32 to 11 significant bits (TF32), of the 16 that
    a picture may have.
    """
    with autocast(device, dtype):
        if device.type != "cuda":
            yield
            return
        with Exact():
            yield


class Exact(AbstractContextManager):
    """Without TF32. Its switch is the process's: the last of several threads turns it back."""

    lock = threading.Lock()
    threads = 0
    before: Any = None

    def __enter__(self) -> None:
        owner, name, exact = _switch_of_tf32()
        with self.lock:
            if Exact.threads == 0:
                Exact.before = getattr(owner, name)
                setattr(owner, name, exact)
            Exact.threads += 1

    def __exit__(self, *exception) -> None:
        owner, name, _ = _switch_of_tf32()
        with self.lock:
            Exact.threads -= 1
            if Exact.threads == 0:
                setattr(owner, name, Exact.before)


def _switch_of_tf32() -> tuple[Any, str, Any]:
    """What holds it, its name there, and its value for none; torch has another one since 2.9."""
    cudnn = torch.backends.cudnn
    convolutions = getattr(cudnn, "conv", None)
    if hasattr(convolutions, "fp32_precision"):
        return convolutions, "fp32_precision", "ieee"
    return cudnn, "allow_tf32", False


def free_on(device: torch.device) -> int:
    """Bytes of memory that are free for tensors, with what torch keeps of those that are gone."""
    if device.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def release_memory_of(device: torch.device) -> None:
    """Give back what torch keeps of tensors that are gone, and what this process does."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    release_memory()


def place(thing: Placed, device: torch.device) -> Placed:
    """A network or images (N, C, H, W), on the device, in the memory format it computes fastest."""
    moving: Any = thing  # networks and tensors take the same arguments, whatever their types say
    if device.type == "mps":
        return moving.to(device)
    return moving.to(device, memory_format=torch.channels_last)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what Python, NumPy, a CPU's or a GPU's allocator raise when it is full."""
    signs = ["allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED"]
    signs += ["bad_alloc", "bad allocation", "Invalid buffer size"]  # MPS's, of a single tensor
    signs += ["unable to find an engine"]  # cuDNN's, where no algorithm's workspace fits
    signs += ["Unable to allocate", "Insufficient memory"]  # NumPy's in a worker; OpenCV's
    kinds = (MemoryError, torch.OutOfMemoryError)
    speaks = isinstance(error, RuntimeError) or type(error).__module__ == "cv2"
    return (
        isinstance(error, kinds)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (speaks and any(sign in str(error) for sign in signs))
    )
