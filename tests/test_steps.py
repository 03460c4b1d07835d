"""Steps that are skipped, clipped and scaled as they should be; the EMA in float64."""

import math

import pytest
import torch
from torch import nn

from training.steps import SafeStep, make_adam, update_ema

CPU = torch.device("cpu")


def take_step(net, optimizer, safe, factor=1.0):
    """Returns the gradient's norm of mean(net(1, 2, 3)) * factor."""
    optimizer.zero_grad()
    safe.backward(net(torch.tensor([[1.0, 2.0, 3.0]])).mean() * factor)
    norm = safe.step(optimizer, optimizer.defaults["lr"])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # whose loss is scaled
def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_returned(dtype):
    net = nn.Linear(3, 1, bias=False)
    optimizer, safe = torch.optim.SGD(net.parameters(), lr=1.0), SafeStep(CPU, dtype, 0.5)
    before = net.weight.detach().clone()
    assert take_step(net, optimizer, safe) == pytest.approx(math.sqrt(14))
    assert (net.weight - before).norm().item() == pytest.approx(0.5)


@pytest.mark.parametrize("fused", [False, True])
def test_adam_goes_on_from_the_state_of_another_device(fused):
    """Which says what that device computes; on MPS it is not fused. Beside torch's own Adam."""
    nets = [nn.Linear(3, 1) for _ in range(3)]
    for net in nets:
        net.load_state_dict(nets[0].state_dict())
    before = torch.optim.Adam(nets[0].parameters(), betas=(0.9, 0.99), fused=fused)
    plain = torch.optim.Adam(nets[1].parameters(), betas=(0.9, 0.99))
    take_step(nets[0], before, SafeStep(CPU, torch.float32, clip=0))
    take_step(nets[1], plain, SafeStep(torch.device("mps"), torch.float32, clip=0))
    nets[2].load_state_dict(nets[0].state_dict())
    adam = make_adam(nets[2], (0.9, 0.99), CPU)
    adam.load_state_dict(before.state_dict())
    assert adam.param_groups[0]["fused"] is True
    assert before.state_dict()["param_groups"][0]["fused"] is fused  # the state is as it was
    take_step(nets[2], adam, SafeStep(CPU, torch.float32, clip=0))
    take_step(nets[1], plain, SafeStep(torch.device("mps"), torch.float32, clip=0))
    torch.testing.assert_close(nets[2].state_dict(), nets[1].state_dict())


def test_adam_goes_on_from_moments_that_lie_in_another_order_in_memory():
    """A run of MPS has contiguous ones, and others have channels last. Beside torch's own Adam."""
    torch.manual_seed(0)
    conv, plain = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    plain.load_state_dict(conv.state_dict())
    given, reference = torch.rand(2, 3, 9, 9), torch.optim.Adam(plain.parameters())
    adam = make_adam(conv, (0.9, 0.999), CPU)
    for step in range(3):
        for net, optimizer in ((conv, adam), (plain, reference)):
            optimizer.zero_grad()
            net(given).square().mean().backward()
            optimizer.step()
        if step == 0:
            state = adam.state_dict()
            assert state["state"][0]["exp_avg"].is_contiguous()
            conv = conv.to(memory_format=torch.channels_last)
            adam = make_adam(conv, (0.9, 0.999), CPU)
            adam.load_state_dict(state)
    assert not conv.weight.is_contiguous()
    torch.testing.assert_close(conv.state_dict(), plain.state_dict())


def test_the_loss_scale_of_fp16_comes_back():
    first, second = (SafeStep(CPU, torch.float16, 0) for _ in range(2))
    net = nn.Linear(3, 1)
    take_step(net, make_adam(net, (0.9, 0.999), CPU), first, math.inf)
    second.load_state_dict(first.state_dict())
    assert second.scaler.get_scale() == first.scaler.get_scale() == 2.0**15
    SafeStep(CPU, torch.float32, 0).load_state_dict(first.state_dict())  # another precision now


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
