"""A generator computed by ncnn instead of torch: on the CPU, or on any GPU that has Vulkan.

net = NcnnNetwork(generator, ncnn_program(generator, half=False))
enlarged = Upscaler(net, "cpu", "fp32")(image)
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upscaling.devices import DeviceError
from upscaling.inputs import UsageError
from upscaling.tiles import Network
from utils import available_memory

MISSING = "--engine ncnn needs the package ncnn: pip install ncnn"
INPUT, OUTPUT = "data", "output"  # the blobs of a program
OUT_OF_MEMORY = -100  # a status of ncnn's layers


class NcnnNetwork(nn.Module):
    """What `Upscaler` takes for a generator; tiles come from the CPU and go back there.

    Args:
        net: the generator in torch, for its shape.
        program: the contents of its .param and its .bin.
        gpu: the number of a Vulkan device; None: the CPU.

    Attributes:
        name: of the device, in words.

    Raises:
        UsageError: ncnn is not installed.
    """

    def __init__(self, net: Network, program: tuple[bytes, bytes], gpu: int | None = None):
        super().__init__()
        self.net = net
        self.scale = net.scale
        self.in_channels, self.out_channels = net.in_channels, net.out_channels
        self.unshuffle = getattr(net, "unshuffle", 1)
        self.ncnn, self.gpu = import_ncnn(), gpu
        self.name = "cpu" if gpu is None else self.ncnn.get_gpu_info(gpu).device_name()
        self.runtime = _loaded(self.ncnn, program, gpu)

    def forward(self, low_res: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3, scale * H, scale * W), fp32.

        Raises:
            MemoryError: ncnn could not allocate what it takes.
            RuntimeError: it failed otherwise.
        """
        height, width = low_res.shape[-2:]
        if min(height, width) < self.unshuffle:
            # The program reflects, and would read beyond so small a picture: as RRDBNet does it.
            padding = (0, -width % self.unshuffle, 0, -height % self.unshuffle)
            low_res = F.pad(low_res, padding, "replicate")
        high_res = torch.stack([self._computed(tile) for tile in low_res.float()])
        return high_res[..., : height * self.scale, : width * self.scale]

    def free_memory(self) -> int:
        """Bytes where it computes."""
        if self.gpu is None:
            return available_memory()
        return self.ncnn.get_gpu_device(self.gpu).get_heap_budget() * 2**20

    def _computed(self, tile: Tensor) -> Tensor:
        channels, height, width = tile.shape
        # ncnn's channels begin at multiples of 16 bytes: an array cannot be taken as it is.
        pixels = self.ncnn.Mat(width, height, channels)
        np.array(pixels, copy=False)[...] = tile.numpy()
        run = self.runtime.create_extractor()
        run.input(INPUT, pixels)
        status, output = run.extract(OUTPUT)
        if status == OUT_OF_MEMORY:
            raise MemoryError("ncnn is out of memory")
        if status:
            raise RuntimeError(f"ncnn failed on {self.name}, with status {status}")
        return torch.from_numpy(np.array(output))


def _loaded(ncnn: Any, program: tuple[bytes, bytes], gpu: int | None) -> Any:
    layers, content = program
    net = ncnn.Net()
    # In fp16 these networks overflow to black pictures, and 16 bits would be lost.
    for option in dir(net.opt):
        if option.startswith(("use_fp16", "use_bf16")):
            setattr(net.opt, option, False)
    net.opt.num_threads = torch.get_num_threads()  # which knows OMP_NUM_THREADS
    if gpu is not None:
        net.opt.use_vulkan_compute = True
        net.set_vulkan_device(gpu)
    if net.load_param_mem(layers.decode()) or net.load_model(_reader(ncnn, content)):
        raise RuntimeError(f"ncnn {ncnn.__version__} does not load this network")
    return net


def _reader(ncnn: Any, content: bytes) -> Any:
    """Gives ncnn the weights from memory: it cannot open every path on Windows.

    Its own `load_model_mem` keeps pointers into a copy that is gone when the call returns.
    """
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

    class Reader(ncnn.DataReader):
        position = 0

        def read(self, buffer: Any, size: int) -> int:
            part = content[self.position : self.position + size]
            ctypes.memmove(pointer(buffer, None), part, len(part))
            self.position += len(part)
            return len(part)

    return Reader()


def import_ncnn() -> Any:
    """The package, which is not among the requirements.

    Raises:
        UsageError: it cannot be imported.
    """
    try:
        import ncnn
    except ModuleNotFoundError as error:
        raise UsageError(MISSING) from error
    except ImportError as error:  # of a library that it stands on
        raise UsageError(f"--engine ncnn cannot load the package ncnn: {error}") from error
    return ncnn


def choose_gpu(processes: int = 1) -> int:
    """The Vulkan device that ncnn likes best: a graphics card before what is in the processor.

    Args:
        processes: how many share the images.

    Raises:
        DeviceError: there is none, or it would be every process's.
        UsageError: ncnn is not installed.
    """
    ncnn = import_ncnn()
    if processes > 1:
        raise DeviceError("--device vulkan is one GPU, for one process: leave out torchrun")
    with _silenced_stderr():
        count = ncnn.get_gpu_count()
    if not count:
        raise DeviceError(
            f"device is 'vulkan': ncnn {ncnn.__version__} finds no GPU with Vulkan here; install "
            "the driver of yours, or leave out --device for the CPU"
        )
    return ncnn.get_default_gpu_index()


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Without what a library in C writes there: ncnn tells all about drivers, found or not."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
