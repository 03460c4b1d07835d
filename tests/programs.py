"""The commands as modules, and networks whose results are worth comparing."""

import importlib.util
import sys
import time
import types
from pathlib import Path

import psutil
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]


def load_program(name: str) -> types.ModuleType:
    """A command, anew each time, by path: `import test` may find Python's own test package."""
    spec = importlib.util.spec_from_file_location(f"the_program_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def ends(process: psutil.Process) -> bool:
    """Whether it does within seconds; nobody may be left to ask how."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def lively(net: nn.Module) -> nn.Module:
    """With weights that keep the range of colours through all layers, and use all of them."""
    generator = torch.Generator().manual_seed(0)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            size = tensor[0].numel() if tensor.ndim == 4 else 9
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / size**0.5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.abs_().add_(0.5)
    return net.eval()
