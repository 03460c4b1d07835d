"""The discriminator in a file: Real-ESRGAN's, in `params`; a last.pt's, in `net_d`; or by itself.

Like a generator, it is known by its tensors' names, wherever they are.
"""

import math
import os
from pathlib import Path

from torch import Tensor

from formats.finding import dotted, same_tensors, tensor_groups
from formats.layouts import BODY, WeightsError, is_counter, problems_of
from formats.reading import read_weights

SIGNS = {"vgg": "features.3.running_mean", "unet": "conv1.weight_orig"}  # names no other has
NEWER_NAMES = {  # of torch.nn.utils.parametrizations.spectral_norm -> those of its older one
    ".parametrizations.weight.original": ".weight_orig",
    ".parametrizations.weight.0._u": ".weight_u",
    ".parametrizations.weight.0._v": ".weight_v",
}


def load_discriminator(
    path: str, net_state: dict[str, Tensor], phase: str = "gan"
) -> dict[str, Tensor]:
    """The tensors of the discriminator in a file, for `load_state_dict`.

    Args:
        path: of a .pth, .pt, .ckpt or .safetensors file.
        net_state: of the discriminator that is to have them, VGGDiscriminator's or
            UNetDiscriminator's.
        phase: that it is for, whose crops have its size.

    Raises:
        WeightsError: no such file, none in it that fits, or several that differ.
    """
    if not os.path.isfile(path):
        raise WeightsError(f"init_discriminator is {path!r}: no such file")
    content, _ = read_weights(Path(path))
    kind = next(kind for kind, sign in SIGNS.items() if sign in net_state)
    found = _discriminators(content, kind)
    if not found:
        raise WeightsError(f"{path} holds no discriminator to start from: {_instead(content)}")
    (place, state), *others = found.items()
    if rivals := [name for name, other in others if not same_tensors(other, state)]:
        raise WeightsError(
            f"{path} holds discriminators that differ: {', '.join((place, *rivals))}; "
            "save one of them alone"
        )
    _refuse_unlike(f"{path}: its {place}", kind, state, net_state, phase)
    return {name: state.get(name, tensor) for name, tensor in net_state.items()}


def _discriminators(content: object, kind: str) -> dict[str, dict[str, Tensor]]:
    """Where they are in a file -> their tensors, without counters."""
    found = {}
    for group in tensor_groups(content):
        tensors = {_older(name): tensor for name, tensor in group.tensors.items()}
        for sign in tensors:
            if sign != SIGNS[kind] and not sign.endswith("." + SIGNS[kind]):
                continue
            prefix = sign.removesuffix(SIGNS[kind])
            place = dotted(group.keys, prefix).strip(".") or "top level"
            found[place] = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix) and not is_counter(name)
            }
    return found


def _older(name: str) -> str:
    for newer, older in NEWER_NAMES.items():
        name = name.replace(newer, older)
    return name


def _instead(content: object) -> str:
    """What is in a file, where the discriminator that was looked for is not."""
    names = [name for group in tensor_groups(content) for name in group.tensors]
    for kind in SIGNS:
        if _discriminators(content, kind):
            return f"it is another kind; give --discriminator {kind}, or another file"
    if any(map(BODY.search, names)):
        return "it has a generator, which --init-from takes; give a discriminator's file"
    what = f"it has {', '.join([*names[:3], '...'])}" if names else "it has no tensors"
    return f"{what}; give Real-ESRGAN's netD, or the last.pt of a run's GAN phase"


def _refuse_unlike(
    source: str, kind: str, state: dict[str, Tensor], net_state: dict[str, Tensor], phase: str
) -> None:
    expected = {name: tensor for name, tensor in net_state.items() if not is_counter(name)}
    problems = sorted(problems_of(state, expected))
    if not problems:
        broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
        problems = [f"{name} holds numbers that are not finite" for name in broken]
    elif state.keys() == expected.keys() and (advice := _size_advice(kind, state, expected, phase)):
        raise WeightsError(f"{source} is of another size; {advice}, or give another file")
    if problems:
        raise WeightsError(
            f"{source} is no complete discriminator ({len(problems)} problems): "
            f"{'; '.join(problems[:4])}; give another file"
        )


def _size_advice(
    kind: str, state: dict[str, Tensor], expected: dict[str, Tensor], phase: str
) -> str:
    """The setting with which the network would have the file's size; empty if it has it."""
    first = "conv0.weight" if kind == "unet" else "classifier.1.weight"
    own, given = (tensors[first].shape for tensors in (expected, state))
    if own == given or not given:
        return ""
    if kind == "unet":
        return f"give --discriminator-features {given[0]}"
    return f"give --{phase}.patch {32 * math.isqrt(given[-1] // 512)}"
