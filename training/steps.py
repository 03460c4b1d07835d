"""Steps that cannot spoil a run, and do not wait: Adam, skipped updates, graphs, the EMA."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def make_adam(net: nn.Module, betas: tuple[float, float], device: torch.device) -> torch.optim.Adam:
    # A fused Adam can skip a step on the device (found_inf) without waiting for a GPU.
    adam = torch.optim.Adam(net.parameters(), betas=betas, fused=device.type != "mps")
    adam.register_load_state_dict_pre_hook(keep_fused)
    adam.register_load_state_dict_post_hook(lay_out_as_weights)
    return adam


def keep_fused(adam: torch.optim.Optimizer, state: dict) -> dict:
    """The saved state, but fused or not as this optimizer is: its own flag was for its device."""
    fused = adam.param_groups[0]["fused"]
    return state | {"param_groups": [group | {"fused": fused} for group in state["param_groups"]]}


def lay_out_as_weights(adam: torch.optim.Optimizer) -> None:
    """Give loaded moments the order in memory that their weights have.

    A fused Adam pairs them by that order, not by index, and another device may have used another.
    """
    for weight, moments in adam.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = torch.empty_like(weight).copy_(moments[name])


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

    def step(self, optimizer: torch.optim.Optimizer, lr: float) -> Tensor:
        """Clip, step if all is finite; returns the gradient's norm before clipping."""
        for group in optimizer.param_groups:
            group["lr"] = lr
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


def compile_networks(net_g: nn.Module, others: Iterable[nn.Module], whole_batches: bool) -> None:
    """In place: names and state stay as they are.

    A GPU waits for the many launches of a small generator; as one CUDA graph they are replayed at
    once. But what a replay gives is overwritten by the next, and a part of a batch needs it longer.
    """
    on_gpu = next(net_g.parameters()).device.type == "cuda"
    # The crops of a phase have one size.
    net_g.compile(mode="reduce-overhead" if on_gpu and whole_batches else None, dynamic=False)
    for net in others:
        net.compile()


def ema_decay_at(run_step: int, most: float) -> float:
    """The average must not remember the random start: it warms up, as TensorFlow's does."""
    return min(most, run_step / (10 + run_step))


@torch.no_grad()
def update_ema(ema: nn.Module, net: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * net for every parameter; buffers are copied."""
    get_ema_multi_avg_fn(decay)(list(ema.parameters()), list(net.parameters()), None)
    for ema_buffer, buffer in zip(ema.buffers(), net.buffers(), strict=True):
        ema_buffer.copy_(buffer)
