"""Generator weights in and out: safetensors (or .pth) in BasicSR's layout, which is model.py's."""

import json
import os
import pickle
import re
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from model import RRDBNet


class WeightsError(ValueError):
    """A file that is no generator we can build; the message names the file and the cause."""


def save_generator(
    net: RRDBNet, path: str | Path, layout: str = "basicsr", metadata: dict | None = None
) -> None:
    """Write a generator's weights, whole or not at all.

    Args:
        net: the network, on any device.
        path: ends in .safetensors.
        layout: "basicsr", the names of model.py.
        metadata: anything JSON can hold; the scale and the network are always added.

    Raises:
        ValueError: another suffix or layout.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: generators are saved as .safetensors")
    if layout != "basicsr":
        raise ValueError(f"layout is {layout!r}; basicsr is the only one so far")
    tensors = {name: tensor.contiguous().cpu() for name, tensor in net.state_dict().items()}
    described = {"network": "RRDBNet", "scale": net.scale} | (metadata or {})
    strings = {key: v if isinstance(v, str) else json.dumps(v) for key, v in described.items()}
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(_in_order(safetensors.torch.save(tensors, strings)))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _in_order(content: bytes) -> bytes:
    """Sort the metadata, which safetensors writes in random order: equal weights, equal files."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors have to start at a multiple of 8
    return len(encoded).to_bytes(8, "little") + encoded + content[start:]


def load_generator(path_or_name: str | Path, map_location: str = "cpu") -> nn.Module:
    """Build the generator that a file describes, in eval mode, with `.scale`.

    `path_or_name` is the path of a file. Features, blocks, growth and scale are found in it. A
    `last.pt` of train.py gives its EMA generator. Pickles are read with weights_only: one that
    would run code is refused.

    Raises:
        WeightsError: no such file, not weights, not an RRDBNet, or an incomplete one.
    """
    path = Path(path_or_name)
    state, metadata = _read(path)
    arguments = _describe(path, state, metadata)
    net = RRDBNet(**arguments)
    expected = net.state_dict()
    problems = [f"{name} is missing" for name in expected.keys() - state.keys()]
    problems += [f"{name} is left over" for name in state.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise WeightsError(f"{path} is no complete RRDBNet: {'; '.join(sorted(problems))}")
    net.load_state_dict(state)
    return net.eval().to(map_location)


def init_generator(net: RRDBNet, path: str | Path) -> tuple[list[str], list[str]]:
    """Start `net` from another generator, of the same network but perhaps at another scale.

    Returns:
        The tensors of `net` that stay as they were, and those of the file that were not taken.

    Raises:
        WeightsError: the file is no generator, or of other features, blocks or growth.
    """
    given = load_generator(path).state_dict()
    own = net.state_dict()
    if differing := [
        f"{name} {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & given.keys()
        if own[name].shape != given[name].shape
    ]:
        raise WeightsError(
            f"{path} is another network: {min(differing)}. Give its --features, --blocks, --growth"
        )
    fresh, unused = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if any(name.startswith("body.") for name in (*fresh, *unused)):
        blocks = len({name.split(".")[1] for name in given if name.startswith("body.")})
        raise WeightsError(
            f"{path} is another network: it has {blocks} blocks. Give --blocks {blocks}"
        )
    net.load_state_dict({name: given.get(name, own[name]) for name in own})
    return fresh, unused


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors, .pth, .pt or .ckpt file."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            return safetensors.torch.load_file(path), metadata
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = "GLOBAL" in str(error)  # what torch calls a function that the file wants called
        reason = "it asks to run code, which is refused" if code else "torch.save did not write it"
        raise WeightsError(f"{path} cannot be read as weights: {reason}") from error
    except Exception as error:  # a damaged file fails in a dozen ways, all of them the file's
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be read as weights: {reason}") from error
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a generator's weights")
    if "ema" in loaded and "config" in loaded:  # train.py's last.pt
        return loaded["ema"], {"scale": str(loaded["config"]["scale"])}
    return loaded, {}


def _describe(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, int]:
    """RRDBNet's arguments, read off the names and shapes of the tensors."""
    ends = ("conv_first.weight", "conv_last.weight", "body.0.rdb1.conv1.weight")
    if not all(isinstance(state.get(name), Tensor) and state[name].ndim == 4 for name in ends):
        raise WeightsError(f"{path} is not an ESRGAN generator in BasicSR's layout: no {ends[0]}")
    first, last, dense = (state[name] for name in ends)
    stages = sum(re.fullmatch(r"conv_up\d+\.weight", name) is not None for name in state)
    return {
        "in_channels": first.shape[1],
        "out_channels": last.shape[0],
        # x2 and x3 have the same tensors: only the metadata tells them apart.
        "scale": 3 if stages == 1 and metadata.get("scale") == "3" else 2**stages,
        "features": first.shape[0],
        "blocks": 1 + max(int(m[1]) for m in map(re.compile(r"body\.(\d+)\.").match, state) if m),
        "growth": dense.shape[0],
    }
