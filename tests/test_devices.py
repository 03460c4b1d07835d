"""GPUs that torch finds and cannot use, their memory, fp32 that is fp32."""

import copy
import sys
from contextlib import suppress
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import upscaling.upscaler
from images.scores import load_metrics
from model import RRDBNet
from upscaling import devices
from upscaling.devices import DeviceError, choose_device, fault_of, free_on, release_memory_of
from upscaling.upscaler import Upscaler, largest_whole

CUDA = torch.device("cuda", 0)
OLD_GPU = RuntimeError("CUDA error: no kernel image is available for execution\nCompile with")


@pytest.fixture
def gpu(monkeypatch):
    """One that torch finds."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)


def test_a_gpu_that_computes_is_used(gpu, monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "fault_of", lambda device: asked.append(device) or "")
    assert choose_device("auto") == choose_device("cuda") == CUDA and asked == [CUDA, CUDA]


def test_a_gpu_that_torch_has_no_kernels_for_is_left_alone_with_a_word(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch, "ones", Mock(side_effect=OLD_GPU))
    assert choose_device("auto") == torch.device("cpu")
    said = capsys.readouterr().err
    assert "GPU of this machine is not used: torch" in said and "no kernel image" in said
    assert "an older torch: https://pytorch.org" in said and "Compile with" not in said
    with pytest.raises(DeviceError, match=r"device is 'cuda', but .*no kernel.*or use --device"):
        choose_device("cuda")


def test_a_gpu_that_is_taken_is_not_called_old(gpu, monkeypatch):
    taken = RuntimeError("CUDA error: out of memory\nCompile with")
    monkeypatch.setattr(torch, "ones", Mock(side_effect=taken))
    for name in ("auto", "cuda"):
        with pytest.raises(DeviceError, match=r"cannot be used now \(CUDA error: out of memory\)"):
            choose_device(name)


def test_a_device_that_computes_has_no_fault(monkeypatch):
    assert fault_of(torch.device("cpu")) == ""
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1))
    assert fault_of(torch.device("cpu")) == "it miscalculates"


@pytest.mark.parametrize("newer", [True, False])
def test_fp32_is_no_tf32_on_a_gpu_and_other_programs_keep_their_choice(newer, monkeypatch):
    """Since torch 2.9 asking for the older switch is an error once the newer one was set."""
    cudnn = SimpleNamespace(allow_tf32=True, benchmark=True)
    if newer:
        cudnn = SimpleNamespace(conv=SimpleNamespace(fp32_precision="tf32"), benchmark=True)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    before, seen = copy.deepcopy(cudnn), []
    for device in (CUDA, torch.device("cpu")):
        with suppress(ZeroDivisionError), devices.computing(device, torch.float32):
            seen.append(cudnn.conv.fp32_precision if newer else cudnn.allow_tf32)
            raise ZeroDivisionError
        assert cudnn == before
    assert seen == (["ieee", "tf32"] if newer else [False, True])


def test_of_two_threads_on_a_gpu_the_last_turns_tf32_back(monkeypatch):
    cudnn = SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    first, second = (devices.computing(CUDA, torch.float32) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert cudnn.allow_tf32 is False
    second.__exit__(None, None, None)
    assert cudnn.allow_tf32 is True


def test_torch_takes_what_is_told_of_tf32():
    owner, name, exact = devices._switch_of_tf32()
    before = getattr(owner, name)
    try:
        setattr(owner, name, exact)
        assert getattr(owner, name) == exact
    finally:
        setattr(owner, name, before)
    assert getattr(owner, name) == before


def test_a_picture_is_computed_so(random_image, monkeypatch):
    used, real = [], upscaling.upscaler.computing
    monkeypatch.setattr(
        upscaling.upscaler, "computing", lambda *given: used.append(given) or real(*given)
    )
    upscaler = Upscaler(RRDBNet(scale=1, features=4, blocks=1, growth=4), "cpu", "fp32", tile=64)
    upscaler(random_image(100, 100).astype(np.uint16))
    upscaler.tile_difference(random_image(100, 100))
    assert used == [(torch.device("cpu"), torch.float32)] * 2


def test_tiles_are_checked_while_no_other_thread_computes(random_image, monkeypatch):
    upscaler = Upscaler(RRDBNet(scale=1, features=4, blocks=1, growth=4), "cpu", "fp32", tile=64)
    held, real = [], upscaling.upscaler.upscale
    monkeypatch.setattr(
        upscaling.upscaler,
        "upscale",
        lambda *a, **k: held.append(upscaler.lock.locked()) or real(*a, **k),
    )
    upscaler.tile_difference(random_image(100, 100))
    assert held == [True, True] and not upscaler.lock.locked()


def test_what_torch_keeps_of_a_gpus_memory_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 8 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10**9)
    assert free_on(CUDA) == 3 * 10**9
    # Three maps of 64 features in fp32, 16 times as large as the input; half of the memory.
    net = RRDBNet(features=64, blocks=1)
    assert largest_whole(net, CUDA) == int((3 * 10**9 / 2 / (3 * 16 * 4 * 64)) ** 0.5)


def test_a_gpus_memory_is_given_back(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cuda"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append("mps"))
    monkeypatch.setattr(devices, "release_memory", lambda: emptied.append("cpu"))
    for name in ("cuda", "mps", "cpu"):
        release_memory_of(torch.device(name))
    assert emptied == ["cuda", "cpu", "mps", "cpu", "cpu"]


def test_metrics_compute_where_fp64_is(monkeypatch):
    made = []
    metric = SimpleNamespace(metric_mode="NR")
    pyiqa = Mock(list_models=lambda: ["niqe"])
    pyiqa.create_metric = lambda name, device: made.append(device.type) or metric
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa)
    for name in ("mps", "cuda"):
        load_metrics(["niqe"], torch.device(name), has_reference=False)
    assert made == ["cpu", "cuda"]
