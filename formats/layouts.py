"""The layouts of ESRGAN generators: what each program calls its tensors, and what it wraps them in.

`unwrap` and `rename` turn any of them into the names of model.py, which are BasicSR's.
"""

import itertools
import re
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

# Training programs put the weights into a dict, under the first of these, and prefixes on names.
WRAPPERS = (
    *("model_state_dict", "state_dict", "ema_state_dict"),
    *("params_ema", "params-ema", "params", "model", "net"),
)
PREFIXES = ("_orig_mod.", "module.", "netG.", "generator_ema.", "generator.")
# Counters that are saved along with weights.
COUNTERS = ("step_counter", "n_averaged", "num_batches_tracked")
# What a training checkpoint of mmagic holds besides the generator and its average.
COMPANIONS = ("discriminator.", "perceptual_loss.", "gan_loss.", "data_preprocessor.")

OTHER_KINDS = {  # a name that gives it away -> what the file holds
    r"classifier\.6\.": "an image classifier such as VGG19",
    r"conv0_0\.|linear1\.|conv\d\.weight_orig|classifier\.": "a discriminator",
    r"body\.1\.weight": "an SRVGGNetCompact network, which has no RRDBs",
    r"optimizer|schedulers|opt_g": "a training state without the network",
}


class WeightsError(ValueError):
    """Weights that cannot be had, read or written; the message names the file and the cause."""


class Layout(NamedTuple):
    """What a program calls its convolutions.

    i: block; j, k: dense block and convolution, from 1; m: upsampling stage, from 1; j0, k0, m0:
    the same from 0; blocks: their number; the old layout counts activations and upsamplings too.
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
}


def unwrap(path: Path, content: dict) -> dict[str, Tensor]:
    """The generator's tensors, without the dicts and prefixes that training programs add."""
    wrapped = next((w for w in WRAPPERS if isinstance(content.get(w), dict)), None)
    inner = content[wrapped] if wrapped else content
    if len(inner) == 1 and isinstance(next(iter(inner.values())), dict):
        inner = next(iter(inner.values()))
    state = {str(name): value for name, value in inner.items() if not is_counter(str(name))}
    if any(name.startswith(("generator.", "generator_ema.")) for name in state):
        averaged = any(name.startswith("generator_ema.") for name in state)
        companions = COMPANIONS + (("generator.",) if averaged else ())
        state = {name: value for name, value in state.items() if not name.startswith(companions)}
    while prefix := _common_prefix(state):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        what = _other_kind(state) or f"{others[0]}, which is no tensor"
        raise WeightsError(f"{path} is not an ESRGAN generator: it holds {what}")
    return state


def _common_prefix(state: dict[str, Tensor]) -> str | None:
    shared = (prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state))
    return next(shared, None) if state else None


def _other_kind(state: dict[str, Tensor]) -> str | None:
    kinds = (k for sign, k in OTHER_KINDS.items() if any(re.match(sign, name) for name in state))
    return next(kinds, None)


def rename(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of model.py; names that no layout has stay as they are."""
    for layout in LAYOUTS.values():
        blocks, stages = blocks_and_stages(state, layout)
        theirs = names_in(layout, blocks, stages)
        if blocks and f"{theirs['conv_first']}.weight" in state:
            ours = {their_name: name for name, their_name in theirs.items()}
            split = ((name.rpartition("."), tensor) for name, tensor in state.items())
            renamed = {f"{ours.get(conv, conv)}.{kind}": t for (conv, _, kind), t in split}
            if len(renamed) < len(state):
                raise WeightsError(f"{path} mixes the names of two layouts; save one of the two")
            return renamed
    what = _other_kind(state) or ", ".join([*list(state)[:3], "..."] if state else ["nothing"])
    raise WeightsError(f"{path} is not an ESRGAN generator: it holds {what}")


def blocks_and_stages(state: dict[str, Tensor], layout: Layout) -> tuple[int, int]:
    """Number of blocks and of upsampling stages."""
    blocks = stages = 0
    while layout.dense.format(i=blocks, j=1, k=1, j0=0, k0=0) + ".weight" in state:
        blocks += 1
    while layout.conv_up.format(m=stages + 1, m0=stages, m_old=3 * stages + 3) + ".weight" in state:
        stages += 1
    return blocks, stages


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
        numbers = dict(i=i, j=j, k=k, j0=j - 1, k0=k - 1)
        names[ours.dense.format(**numbers)] = layout.dense.format(**numbers)
    if layout is LAYOUTS["old"]:  # the only one that ESRGAN+ is published in
        for i, j in itertools.product(range(blocks), range(1, 4)):
            names[f"body.{i}.rdb{j}.conv1x1"] = f"model.1.sub.{i}.RDB{j}.conv1x1"
    return names


def is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS
