"""EMA in float64, checkpoint files that survive, safe steps, stopping."""

import math
import os
import signal

import pytest
import torch
from torch import nn

import utils
from utils import (
    CheckpointError,
    DeviceError,
    SafeStep,
    StopRequest,
    choose_device,
    choose_precision,
    load_checkpoint,
    make_adam,
    save_checkpoint,
    update_ema,
)


def test_ema_moves_the_right_way_by_the_right_amount():
    net, ema = (nn.BatchNorm1d(3).double() for _ in range(2))
    nn.init.constant_(net.weight, 5.0)
    nn.init.constant_(ema.weight, 1.0)
    net.running_mean.fill_(7.0)
    for _ in range(2):
        update_ema(ema, net, 0.9)
    # 1 -> 0.9 * 1 + 0.1 * 5 = 1.4 -> 0.9 * 1.4 + 0.1 * 5 = 1.76
    torch.testing.assert_close(ema.weight.data, torch.full((3,), 1.76).double(), rtol=0, atol=1e-7)
    assert ema.running_mean.eq(7).all()
    assert net.weight.eq(5).all() and ema.weight.grad_fn is None


def test_checkpoints_come_back(tmp_path):
    state = dict(step=3, config=dict(lr=1e-4, milestones=(1, 2)), net={"w": torch.rand(3)})
    save_checkpoint(tmp_path / "last.pt", state)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert loaded["config"] == state["config"] and torch.equal(
        loaded["net"]["w"], state["net"]["w"]
    )
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_write_that_fails_half_way_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "last.pt", {"step": 1})

    def fail(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path / "last.pt", {"step": 2})
    assert load_checkpoint(tmp_path / "last.pt") == {"step": 1}


def test_bad_checkpoints_are_named_and_code_is_not_run(tmp_path, malicious_pickle):
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "empty.pt").write_text("")
    bomb, marker = malicious_pickle
    for path in (tmp_path / "text.pt", tmp_path / "empty.pt", bomb):
        with pytest.raises(CheckpointError, match=path.name):
            load_checkpoint(path)
    assert not marker.exists()


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


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_a_full_disk_is_named_and_keeps_the_old_checkpoint(tmp_path):
    import resource

    save_checkpoint(tmp_path / "last.pt", {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"last\.pt cannot .* \(File too large\); the"):
            save_checkpoint(tmp_path / "last.pt", {"step": 2, "weights": torch.rand(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(tmp_path / "last.pt") == {"step": 1}
    assert os.listdir(tmp_path) == ["last.pt"]


CPU = torch.device("cpu")


def take_step(net, optimizer, safe, factor=1.0):
    """Returns the gradient's norm of mean(net(1, 2, 3)) * factor."""
    optimizer.zero_grad()
    safe.backward(net(torch.tensor([[1.0, 2.0, 3.0]])).mean() * factor)
    norm = safe.step(optimizer)
    safe.update()
    return norm.item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_steps_that_are_not_finite_change_nothing(dtype):
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    plain = nn.Linear(3, 1)
    plain.load_state_dict(net.state_dict())
    optimizer, safe = make_adam(net, (0.9, 0.999), CPU), SafeStep(CPU, dtype, clip=0)
    reference = torch.optim.Adam(plain.parameters(), betas=(0.9, 0.999))  # torch's own, two steps
    for factor in (1.0, math.nan, math.inf, 1.0):
        norm = take_step(net, optimizer, safe, factor)
        assert math.isfinite(norm) == (factor == 1)
        if factor == 1:
            reference.zero_grad()
            plain(torch.tensor([[1.0, 2.0, 3.0]])).mean().backward()
            reference.step()
        for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
    expected_scale = 2.0**14 if dtype == torch.float16 else 1.0  # halved by each of the two
    assert safe.scaler.get_scale() == expected_scale


def test_a_loss_that_is_not_finite_spoils_every_gradient_even_where_its_own_is_finite():
    weight = nn.Parameter(torch.tensor([1.0]))
    safe = SafeStep(CPU, torch.float32, clip=0)
    safe.backward((weight + torch.tensor(math.inf)).sum())  # its derivative is 1
    assert weight.grad.isnan().all()


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_returned():
    net = nn.Linear(3, 1, bias=False)
    optimizer, safe = torch.optim.SGD(net.parameters(), lr=1.0), SafeStep(CPU, torch.float32, 0.5)
    before = net.weight.detach().clone()
    assert take_step(net, optimizer, safe) == pytest.approx(math.sqrt(14))
    assert (net.weight - before).norm().item() == pytest.approx(0.5)


def test_the_loss_scale_of_fp16_comes_back():
    first, second = (SafeStep(CPU, torch.float16, 0) for _ in range(2))
    net = nn.Linear(3, 1)
    take_step(net, make_adam(net, (0.9, 0.999), CPU), first, math.inf)
    second.load_state_dict(first.state_dict())
    assert second.scaler.get_scale() == first.scaler.get_scale() == 2.0**15
    SafeStep(CPU, torch.float32, 0).load_state_dict(first.state_dict())  # another precision now


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
