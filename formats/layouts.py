"""The layouts of ESRGAN generators: what each program calls its tensors, and what those tell.

`rename` turns any of them into the names of model.py, which are BasicSR's.
"""

import itertools
import math
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Saved along with weights.
COUNTERS = ("step_counter", "n_averaged", "num_batches_tracked", "steps")


class WeightsError(ValueError):
    """Weights that cannot be had, read or written; the message names the file and the cause."""


class Layout(NamedTuple):
    """What a program calls its convolutions.

    i: block; j, k: dense block and convolution, from 1; m: upsampling stage, from 1; j0, k0, m0:
    the same from 0; k_0: 1.0 to 4.0 and 5, of which the first four are followed by an activation;
    blocks: their number; the old layout counts activations and upsamplings too.
    """

    conv_first: str
    dense: str
    conv_body: str
    conv_up: str
    conv_hr: str
    conv_last: str


LAYOUTS = {
    "basicsr": Layout(
        *("conv_first", "body.{i}.rdb{j}.conv{k}", "conv_body"),
        *("conv_up{m}", "conv_hr", "conv_last"),
    ),
    "official": Layout(
        *("conv_first", "RRDB_trunk.{i}.RDB{j}.conv{k}", "trunk_conv"),
        *("upconv{m}", "HRconv", "conv_last"),
    ),
    "old": Layout(
        *("model.0", "model.1.sub.{i}.RDB{j}.conv{k}.0", "model.1.sub.{blocks}"),
        *("model.{m_old}", "model.{hr_old}", "model.{last_old}"),
    ),
    "aladdinpersson": Layout(
        *("initial", "residuals.{i}.rrdb.{j0}.blocks.{k0}.cnn", "conv"),
        *("upsamples.{m0}.conv", "final.0", "final.2"),
    ),
    "lornatang": Layout(
        *("conv1", "trunk.{i}.rdb{j}.conv{k}", "conv2"),
        *("upsampling{m}.0", "conv3.0", "conv4"),
    ),
    "lornatang 0.2": Layout(
        *("conv1", "trunk.{i}.RDB{j}.conv{k_0}", "conv2"),
        *("up{m}", "conv3.0", "conv4"),
    ),
}
# What DataParallel, torch.compile, FSDP and their like put into names, around any module.
WRAPPER = r"(?:module|_\w+)"
_BODIES = [re.sub(r"{\w+}", "#", layout.dense) for layout in LAYOUTS.values()] + ["body.#.prelu"]
_PATTERNS = "|".join(rf"\.(?:{WRAPPER}\.)*".join(body.split(".")) for body in _BODIES)
# Finds a generator by a name of its body; group 1 begins where the layout's own name does.
BODY = re.compile(rf"(?:^|\.)((?:{_PATTERNS})\.)".replace("#", r"\d+"))


def rename(source: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of model.py; names that no layout has stay as they are."""
    name = layout_of(state)
    if name is None:
        return state
    theirs = names_in(LAYOUTS[name], *blocks_and_stages(state, LAYOUTS[name]))
    ours = {their_name: name for name, their_name in theirs.items()}
    split = ((name.rpartition("."), tensor) for name, tensor in state.items())
    renamed = {f"{ours.get(conv, conv)}.{kind}": t for (conv, _, kind), t in split}
    if len(renamed) < len(state):
        raise WeightsError(f"{source} mixes the names of two layouts; save one of the two")
    return renamed


def rename_back(net: Any, layout: str) -> dict[str, Tensor]:
    """The tensors of RRDBNet or SRResNet, on the CPU, under a layout's names; without counters."""
    theirs = names_in(LAYOUTS[layout], len(net.body), len(net.stages))
    split = ((name.rpartition("."), tensor) for name, tensor in net.state_dict().items())
    return {
        f"{theirs.get(layer, layer)}.{kind}": tensor.contiguous().cpu()
        for (layer, _, kind), tensor in split
        if kind not in COUNTERS
    }


def layout_of(state: dict[str, Tensor]) -> str | None:
    """The layout that RRDBNet's tensors are named in."""
    for name, layout in LAYOUTS.items():
        blocks, _ = blocks_and_stages(state, layout)
        if blocks and f"{layout.conv_first}.weight" in state:
            return name
    return None


def blocks_and_stages(state: dict[str, Tensor], layout: Layout) -> tuple[int, int]:
    """Number of blocks and of upsampling stages."""
    blocks = stages = 0
    while in_block(layout, blocks, 1, 1) + ".weight" in state:
        blocks += 1
    while layout.conv_up.format(m=stages + 1, m0=stages, m_old=3 * stages + 3) + ".weight" in state:
        stages += 1
    return blocks, stages


def in_block(layout: Layout, i: int, j: int, k: int) -> str:
    """The name of a convolution of the dense blocks, counted as in `Layout`."""
    k_0 = f"{k}.0" if k < 5 else "5"
    return layout.dense.format(i=i, j=j, k=k, j0=j - 1, k0=k - 1, k_0=k_0)


def names_in(layout: Layout, blocks: int, stages: int) -> dict[str, str]:
    """Each convolution's name here -> its name in `layout`."""
    ours = LAYOUTS["basicsr"]
    names = {
        "conv_first": layout.conv_first,
        "conv_body": layout.conv_body.format(blocks=blocks),
        "conv_hr": layout.conv_hr.format(hr_old=3 * stages + 2),
        "conv_last": layout.conv_last.format(last_old=3 * stages + 4),
    }
    for m in range(1, stages + 1):
        names[f"conv_up{m}"] = layout.conv_up.format(m=m, m0=m - 1, m_old=3 * m)
    for i, j, k in itertools.product(range(blocks), range(1, 4), range(1, 6)):
        names[in_block(ours, i, j, k)] = in_block(layout, i, j, k)
    if layout is LAYOUTS["old"]:  # the only one that ESRGAN+ is published in
        for i, j in itertools.product(range(blocks), range(1, 4)):
            names[f"body.{i}.rdb{j}.conv1x1"] = f"model.1.sub.{i}.RDB{j}.conv1x1"
    return names


def srresnet_arguments(state: dict[str, Tensor]) -> dict[str, Any]:
    """What SRResNet was built with, from names and shapes."""
    features, channels = state["conv_first.weight"].shape[:2]
    factor = 1
    for name, tensor in state.items():
        if re.fullmatch(r"conv_up\d+\.weight", name) and tensor.ndim == 4:
            factor *= math.isqrt(tensor.shape[0] // features)
    return {
        "in_channels": channels,
        "out_channels": state["conv_last.weight"].shape[0],
        "scale": factor,
        "features": features,
        "blocks": sum(bool(re.fullmatch(r"body\.\d+\.conv1\.weight", name)) for name in state),
        "batch_norm": "bn_body.weight" in state,
    }


def rrdbnet_arguments(state: dict[str, Tensor], scale: int | None) -> dict[str, Any]:
    """What RRDBNet was built with, from names and shapes; only `scale` separates x3 from x2."""
    features, channels = state["conv_first.weight"].shape[:2]
    out_channels = state["conv_last.weight"].shape[0]
    blocks, stages = blocks_and_stages(state, LAYOUTS["basicsr"])
    unshuffle = 1
    for factor in (2, 4):  # Real-ESRGAN folds pixels: 4 or 16 times as many channels go in
        if channels == out_channels * factor**2:
            channels, unshuffle = out_channels, factor
    plain_x3 = scale == 3 and stages == 1 and unshuffle == 1
    return {
        "in_channels": channels,
        "out_channels": out_channels,
        "scale": 3 if plain_x3 else 2**stages // unshuffle,
        "features": features,
        "blocks": blocks,
        "growth": state["body.0.rdb1.conv1.weight"].shape[0],
        "unshuffle": unshuffle,
        "plus": "body.0.rdb1.conv1x1.weight" in state,
    }


def is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def problems_of(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Everything that keeps these tensors from being that network, a phrase each."""
    problems = [f"{name} is missing" for name in expected.keys() - state.keys()]
    problems += [f"{name} is left over" for name in state.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems += [
        f"{name} holds {tensor.dtype} ({tensor.layout}), no plain real numbers"
        for name, tensor in state.items()
        if not (
            tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta
        )
    ]
    return problems
