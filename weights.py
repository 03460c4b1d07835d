"""Generator weights: every published ESRGAN layout in, the tools' layouts out, interpolation.

    python weights.py convert WEIGHTS -o OUT.safetensors          for this, spandrel, chaiNNer, ...
    python weights.py convert WEIGHTS -o OUT.pth --to official    for the ESRGAN repository
    python weights.py convert WEIGHTS -o OUT.onnx --to onnx --half
    python weights.py convert WEIGHTS -o NAME-x4 --to ncnn        for Upscayl and its like
    python weights.py describe WEIGHTS                            what the file is
    python weights.py interpolate PSNR GAN --alpha 0.8 -o OUT.safetensors
    python weights.py interpolate PSNR GAN --pictures PHOTOS      to choose alpha by eye

WEIGHTS is a file, or a name: of one in the box (compact_x4_gan, ...), or of a published one
(RealESRGAN_x4plus, ...), which is downloaded.
Inside this project weights have BasicSR's layout, which is model.py's.
"""

import argparse
import copy
import json
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from upscaling.weights_flags import ALPHAS, SUFFIXES, parse_args
from utils import hear_kill, prepare_for_torch, prepare_output, printable, replacing

if __name__ == "__main__":  # --help and wrong flags are answered before torch takes its seconds
    prepare_output()
    parse_args()
    prepare_for_torch()

import torch
from torch import Tensor

from formats.describing import TO_FILL_IN, Description, files_of, openmodeldb
from formats.finding import Found, find_generator, told_scale
from formats.layouts import (
    WeightsError,
    is_counter,
    problems_of,
    rename,
    rename_back,
    rrdbnet_arguments,
    srresnet_arguments,
)
from formats.ncnn import Pair, ncnn_program, pair_named
from formats.onnx import onnx_program
from formats.published import locate
from formats.reading import read_weights
from formats.tensors import pth_file, safetensors_file
from images.opening import silence_pillow
from model import SCALES, RRDBNet, SRResNet
from upscaling.alphas import write_strips
from upscaling.devices import DeviceError
from upscaling.inputs import UsageError, in_lines, places
from upscaling.upscaler import Upscaler, check_channels

# What a network's body begins with.
FIRST_IN_BODY = {RRDBNet: "body.0.rdb1.conv1.weight", SRResNet: "body.0.conv1.weight"}

Generator = RRDBNet | SRResNet
SCORES = re.compile("(bicubic_)?(psnr|ssim|niqe)")  # train.py's, in a validated file's metadata
# What train.py can be told of a network -> the flag and, where it has other words, its value.
FLAGS: dict[str, tuple[str, dict[Any, str]]] = {
    "network": ("--generator", {"RRDBNet": "rrdb", "SRResNet": "srresnet"}),
    "features": ("--features", {}),
    "blocks": ("--blocks", {}),
    "growth": ("--growth", {}),
    "unshuffle": ("--unshuffle", {}),
    "batch_norm": ("--batch-norm", {True: "true", False: "false"}),
}


class Loaded(NamedTuple):
    """A generator from a file.

    metadata: what the file says of it; part: words to put behind the file's name, which tell where
    it was if the file holds another generator, too (": its params_ema"), otherwise "".
    """

    net: Generator
    metadata: dict[str, str]
    part: str


# ------------------------------------------------------------------------------------- file in


def load_generator(
    path_or_name: str | Path, map_location: str = "cpu", scale: int | None = None
) -> Generator:
    """Build the generator that a file describes, in eval mode and fp32, with `.scale`.

    Layouts: BasicSR and Real-ESRGAN, the official ESRGAN, its older releases, ESRGAN+,
    aladdinpersson, Lornatang. Features, blocks, growth, channels and scale are found in the file.
    Of a training program's file it is the averaged generator, or else the generator, whatever they
    are called and saved with. SRResNet is read as train.py writes it.
    Pickles are read with weights_only: one that would run code is refused.

    Args:
        path_or_name: a .pth, .pt, .ckpt or .safetensors file, one of a pair of ncnn's, or a name
            that `locate` knows: of a file in the box, or of a published one, which is downloaded
            into checkpoints/ once.
        map_location: the device of the result.
        scale: needed for x3 where neither the file nor its name says it: its tensors look like
            x2's.

    Raises:
        WeightsError: no such file, no network, not an ESRGAN generator, or an incomplete one;
            several that differ, with nothing to choose by.
    """
    return read_generator(path_or_name, scale).net.to(map_location)


def read_generator(path_or_name: str | Path, scale: int | None = None) -> Loaded:
    """What `load_generator` builds, on the CPU, and what the file says of it."""
    return _load(path_or_name, scale)[0]


def _load(path_or_name: str | Path, scale: int | None) -> tuple[Loaded, Path, Found]:
    """A generator, its file, and its tensors as they are in there."""
    path = locate(path_or_name)
    content, metadata = read_weights(path)
    found, part = find_generator(path, content)
    told = told_scale(path, content, metadata)
    # A pair's graph knows its scale, and so does who wrote it into the file.
    sure = metadata.get("scale", "").isdigit()
    net = _build(f"{path}{part}", found.state, told if sure else scale or told)
    if scale and net.scale != scale:
        raise WeightsError(
            f"{path}{part} is x{net.scale}, not x{scale}, and nothing changes that; "
            f"for results {scale} times as large: test.py --outscale {scale}"
        )
    return Loaded(net, metadata, part), path, found


def init_generator(net: Generator, path: str | Path) -> tuple[str, list[str], list[str]]:
    """Start `net` from another generator, of the same network but perhaps at another scale.

    Returns:
        The file, with the part of it that was taken, the tensors of `net` that stay as they were,
        and those of the file that were not taken.

    Raises:
        WeightsError: the file is no generator, or another network (its scale may differ).
    """
    other, _, part = read_generator(path)
    if differing := _differences(net, other, ignored=("scale",)):
        advice = _advice(net, other)
        raise WeightsError(f"{path}{part} is another network: it has {differing}; {advice}")
    own, given = net.state_dict(), other.state_dict()
    fits = {name for name in own.keys() & given.keys() if own[name].shape == given[name].shape}
    fresh, unused = sorted(own.keys() - fits), sorted(given.keys() - fits)
    net.load_state_dict({name: given[name] if name in fits else own[name] for name in own})
    return f"{path}{part}", fresh, unused


def interpolate(psnr_net: Generator, gan_net: Generator, alpha: float) -> Generator:
    """Network interpolation: (1 - alpha) * PSNR + alpha * GAN for every weight (section 3.4).

    The running statistics of batch norm are interpolated like weights.

    Returns:
        A new network; the two stay as they are.

    Raises:
        WeightsError: the two are not the same network, or alpha is outside [0, 1].
    """
    psnr_net, gan_net = uncompiled(psnr_net), uncompiled(gan_net)
    if not 0 <= alpha <= 1:
        raise WeightsError(f"alpha is {alpha}; it goes from 0, the PSNR network, to 1, the GAN")
    if differing := _differences(gan_net, psnr_net):
        raise WeightsError(
            f"only like networks can be interpolated: the PSNR network has {differing}"
        )
    mixed = copy.deepcopy(psnr_net)
    gan_state = gan_net.state_dict()
    for name, tensor in mixed.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(gan_state[name], alpha)
    return mixed


def _differences(net: Generator, other: Generator, ignored: tuple[str, ...] = ()) -> str:
    """What `other` has that `net` has not: "features 32, not 64, ..."; empty if nothing."""
    own, others = (_description(each) for each in (net, other))
    if own["network"] != others["network"]:
        return f"network {others['network']}, not {own['network']}"
    return " and ".join(
        f"{key} {others[key]}, not {value}"
        for key, value in own.items()
        if key not in ignored and value != others[key]
    )


def _advice(net: Generator, other: Generator) -> str:
    """What to tell train.py, so that its network `net` is like `other`; or that it cannot be."""
    ordinary = {"unshuffle": 1, "plus": False}  # SRResNet's, which has no such arguments
    own, given = ordinary | _description(net), _description(other)
    wanted = {key: v for key, v in given.items() if key != "scale" and own.get(key) != v}
    if fixed := [key for key in wanted if key not in FLAGS]:
        return f"train.py has no setting for {' and '.join(fixed)}, so give another file"
    flags = ((*FLAGS[key], value) for key, value in wanted.items())
    return "add " + " ".join(f"{flag} {words.get(value, value)}" for flag, words, value in flags)


def _description(net: Generator) -> dict[str, Any]:
    """The kind of network, and the arguments it was built with."""
    arguments = _arguments(type(net), net.state_dict(), net.scale)
    return {"network": type(net).__name__} | arguments


def _build(source: str, state: dict[str, Tensor], scale: int | None) -> Generator:
    """The generator that these tensors of a file are; with `scale` 3, x3 if it can be."""
    kind: type[Generator] = SRResNet if "body.0.prelu.weight" in state else RRDBNet
    if kind is RRDBNet:
        state = rename(source, state)
    for name in ("conv_first.weight", FIRST_IN_BODY[kind], "conv_last.weight"):
        if name not in state or state[name].ndim != 4 or state[name].numel() == 0:
            shuffled = "it upsamples by pixel shuffle, which is not computed here"
            missing = shuffled if _shuffles(state) else f"{name} is missing or no kernel"
            raise WeightsError(f"{source} is no complete {kind.__name__}: {missing}")
    arguments = _arguments(kind, state, scale)
    if arguments["scale"] not in SCALES:
        raise WeightsError(f"{source} is x{arguments['scale']}, which no network here computes")
    with torch.device("meta"):  # shapes are compared before a byte is allocated
        net: Generator = kind(**arguments)
    expected = {name: t for name, t in net.state_dict().items() if not is_counter(name)}
    if problems := sorted(problems_of(state, expected)):
        shown = [*problems[:8], *(["..."] if len(problems) > 8 else [])]
        raise WeightsError(
            f"{source} is no complete {kind.__name__} ({len(problems)} problems): "
            + "; ".join(shown)
        )
    try:
        weights = {name: state[name].to(torch.float32, copy=True).contiguous() for name in expected}
    except RuntimeError as error:
        raise WeightsError(
            f"{source} does not fit in memory ({str(error).splitlines()[0]})"
        ) from error
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise WeightsError(f"{source}: {broken[0]} holds numbers that are not finite")
    counters = {name: torch.tensor(0) for name in net.state_dict() if is_counter(name)}
    net.load_state_dict(weights | counters, assign=True)
    return net.eval()


def _shuffles(state: dict[str, Tensor]) -> bool:
    """Whether a kernel behind the body makes the channels of 2x2 or 3x3 pixels for each of its
    own; of the old layout the first one stands where ESRGAN has conv_hr."""
    behind = re.compile(r"(model\.\d+|conv_hr)\.weight")
    kernels = (tensor for name, tensor in state.items() if behind.fullmatch(name))
    return any(t.ndim == 4 and t.shape[0] in (4 * t.shape[1], 9 * t.shape[1]) for t in kernels)


def _arguments(kind: type, state: dict[str, Tensor], scale: int | None) -> dict[str, Any]:
    return srresnet_arguments(state) if kind is SRResNet else rrdbnet_arguments(state, scale)


# ------------------------------------------------------------------------------------ file out


def save_generator(
    net: Generator, path: str | Path, layout: str = "basicsr", metadata: dict | None = None
) -> None:
    """Write a generator's weights in their own precision; each file is whole or not written.

    Args:
        net: the network, on any device.
        path: ends in .safetensors or .pth; for "onnx", in .onnx; for "ncnn", NAME or one of
            NAME.param and NAME.bin: both are written.
        layout: "basicsr", model.py's names, and in a .pth its key "params"; "official" and "old",
            what the ESRGAN repository and its first release load; "onnx", a program with dynamic
            height and width that takes and gives (1, channels, H, W); "ncnn", a pair of files for
            Upscayl, with fp16 weights. SRResNet has its own names only, which "basicsr" stands for.
        metadata: anything JSON can hold; the scale and the network are always added. A .pth in
            the official or old layout has no place for it, nor has ncnn.

    Raises:
        ValueError: another suffix or layout; ESRGAN+ in "basicsr" or "official", and SRResNet in
            "official" or "old", which have no names for them; what would be read as another one.
        WeightsError: ONNX without the onnx package.
    """
    path, net = Path(path), uncompiled(net)
    if layout not in SUFFIXES:
        raise ValueError(f"layout is {layout!r}; it can be {', '.join(SUFFIXES)}")
    if layout == "ncnn":
        return _save_pair(pair_named(path, net.scale), net)
    if path.suffix not in SUFFIXES[layout]:
        others = [name for name, suffixes in SUFFIXES.items() if path.suffix in suffixes]
        remedy = f"; {path.suffix} is of the layout {' or '.join(others)}" if others else ""
        raise ValueError(f"{path}: {layout} is written to {' or '.join(SUFFIXES[layout])}{remedy}")
    network, read_as = type(net).__name__, _arguments(type(net), net.state_dict(), net.scale)
    misread = (
        read_as["in_channels"] != net.in_channels or read_as.get("scale", net.scale) != net.scale
    )
    if misread and layout != "onnx":
        raise ValueError(
            f"{path}: from its tensors nobody could tell that it takes {net.in_channels} channels "
            f"and is x{net.scale}; choose onnx"
        )
    if network == "SRResNet" and layout not in ("basicsr", "onnx"):
        raise ValueError(f"{path}: SRResNet has no {layout} layout; choose basicsr, onnx or ncnn")
    if network == "RRDBNet" and _description(net)["plus"] and layout not in ("old", "onnx"):
        raise ValueError(f"{path}: ESRGAN+ has no {layout} layout; choose old, onnx or ncnn")
    described = (metadata or {}) | {"network": network, "scale": net.scale}
    strings = {key: v if isinstance(v, str) else json.dumps(v) for key, v in described.items()}
    if layout == "onnx":
        content = onnx_program(net, strings)
    elif path.suffix == ".safetensors":
        content = safetensors_file(rename_back(net, layout), strings)
    elif layout == "basicsr":  # whose own programs look for "params"
        content = pth_file({"params": rename_back(net, layout), "metadata": strings})
    else:  # the official program wants the bare tensors
        content = pth_file(rename_back(net, layout))
    with replacing(path) as file:
        file.write(content)


def uncompiled(net: Generator) -> Generator:
    """The network itself, where torch.compile has wrapped it."""
    return getattr(net, "_orig_mod", net)


def _save_pair(pair: Pair, net: Generator) -> None:
    try:
        param, binary = ncnn_program(net)
    except ValueError as error:
        raise ValueError(f"{pair.param}: {error}") from error
    with replacing(pair.param) as first, replacing(pair.binary) as second:
        first.write(param)
        second.write(binary)


# -------------------------------------------------------------------------------- command line


def main() -> int:
    arguments = parse_args()
    if arguments.command == "interpolate" and arguments.pictures:
        return show_alphas(arguments)
    if arguments.command == "describe":
        return describe(arguments)
    inputs = [locate(name) for name in arguments.inputs]
    written = pair_named(arguments.output) if arguments.to == "ncnn" else (arguments.output,)
    if places(filter(os.path.exists, inputs)) & places(written):
        raise WeightsError(f"{arguments.output} is an input; choose another name with -o")
    if not os.path.isdir(arguments.output.parent):
        raise WeightsError(f"{arguments.output.parent}: no such folder")
    loaded = read_inputs(arguments)
    net, metadata, _ = loaded[-1]
    sources = [f"{path.name}{each.part}" for path, each in zip(inputs, loaded, strict=True)]
    metadata |= {"source": printable(" + ".join(sources))}
    if arguments.command == "interpolate":
        net = interpolate(loaded[0].net, net, arguments.alpha[0])
        metadata = {key: metadata[key] for key in metadata if not SCORES.fullmatch(key)}
        metadata |= {"alpha": str(arguments.alpha[0])}
    if arguments.half:
        net.half()
        if not all(tensor.isfinite().all() for tensor in net.state_dict().values()):
            raise WeightsError("some weights are too large for --half; leave it out")
    try:
        save_generator(net, arguments.output, arguments.to, metadata)
    except (ValueError, OSError) as error:
        raise WeightsError(str(error)) from error
    size = sum(path.stat().st_size for path in written) / 2**20
    names = " and ".join(map(str, written))
    print(printable(f"x{net.scale}, {arguments.to}, {size:.1f} MiB: {names}"))
    if arguments.to not in ("onnx", "ncnn") and isinstance(net, RRDBNet) and net.scale == 3:
        print("Other programs cannot tell x3 from x2 by its tensors: name the scale to them.")
    return 0


def describe(arguments: argparse.Namespace) -> int:
    """Print what a file is; as JSON, nothing else on stdout."""
    with redirect_stdout(sys.stderr):  # a download says so
        (net, metadata, _), path, found = _load(arguments.inputs[0], arguments.scale)
    built_with = _arguments(type(net), net.state_dict(), net.scale)
    count = sum(parameter.numel() for parameter in net.parameters())
    kind = type(net).__name__
    described = Description(files_of(path), found, kind, built_with, count, metadata)
    if arguments.openmodeldb:
        print(json.dumps(openmodeldb(described), indent=4))
        print(f"Fill in {TO_FILL_IN}.", file=sys.stderr)
    else:
        print("\n".join(map(printable, described.lines())))
    return 0


def read_inputs(arguments: argparse.Namespace) -> list[Loaded]:
    """The generators that were named; says which one it took of several in a file."""
    loaded = [read_generator(name, arguments.scale) for name in arguments.inputs]
    for name, each in zip(arguments.inputs, loaded, strict=True):
        if each.part:
            print(printable(f"{name}{each.part}"))
    return loaded


def show_alphas(arguments: argparse.Namespace) -> int:
    """Strips of photographs from the PSNR network to the GAN; returns the exit status."""
    psnr_net, gan_net = (each.net for each in read_inputs(arguments))
    check_channels(gan_net, arguments.inputs[1])
    upscalers = {
        alpha: Upscaler(interpolate(psnr_net, gan_net, alpha), arguments.device)
        for alpha in arguments.alpha or ALPHAS
    }
    output = arguments.output or Path("results/interpolated")
    return 1 if write_strips(arguments.pictures, output, arguments.hr, upscalers) else 0


if __name__ == "__main__":
    silence_pillow()
    hear_kill()
    try:
        sys.exit(main())
    except (WeightsError, UsageError, DeviceError) as error:
        print("weights.py:", in_lines(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("weights.py: interrupted; what was done is kept")
