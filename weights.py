"""Generator weights: every published ESRGAN layout in, the tools' layouts out, interpolation.

    python weights.py convert WEIGHTS -o OUT.safetensors          for this, spandrel, chaiNNer, ...
    python weights.py convert WEIGHTS -o OUT.pth --to official    for the ESRGAN repository
    python weights.py convert WEIGHTS -o OUT.onnx --to onnx --half
    python weights.py interpolate PSNR GAN --alpha 0.8 -o OUT.safetensors
    python weights.py interpolate PSNR GAN --pictures PHOTOS      to choose alpha by eye

WEIGHTS is a file, or the name of a published one (RealESRGAN_x4plus, ...), which is downloaded.
Inside this project weights have BasicSR's layout, which is model.py's.
"""

import argparse
import copy
import io
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from formats.layouts import (
    COUNTERS,
    LAYOUTS,
    WeightsError,
    blocks_and_stages,
    is_counter,
    names_in,
    rename,
    unwrap,
)
from formats.onnx import onnx_program
from formats.published import PUBLISHED, locate
from model import SCALES, RRDBNet, SRResNet
from upscaling.alphas import write_strips
from upscaling.arguments import a_path, not_empty
from upscaling.inputs import UsageError
from upscaling.upscaler import Upscaler, check_channels
from utils import DeviceError, UnreadableError, load_tensors, prepare_output, printable, replacing

SUFFIXES = {  # what can be written -> the kinds of file it is written to
    "basicsr": (".safetensors", ".pth"),
    "official": (".safetensors", ".pth"),
    "old": (".safetensors", ".pth"),
    "onnx": (".onnx",),
}
# What a network's body begins with.
FIRST_IN_BODY = {RRDBNet: "body.0.rdb1.conv1.weight", SRResNet: "body.0.conv1.weight"}

Generator = RRDBNet | SRResNet
ALPHAS = (0, 0.2, 0.4, 0.6, 0.8, 1)  # of --pictures

# ------------------------------------------------------------------------------------- file in


def load_generator(
    path_or_name: str | Path, map_location: str = "cpu", scale: int | None = None
) -> Generator:
    """Build the generator that a file describes, in eval mode and fp32, with `.scale`.

    Layouts: BasicSR and Real-ESRGAN, the official ESRGAN, its older releases, ESRGAN+,
    aladdinpersson, Lornatang. Features, blocks, growth, channels and scale are found in the file.
    A `last.pt` of train.py gives its EMA generator, and SRResNet is read as train.py writes it.
    Pickles are read with weights_only: one that would run code is refused.

    Args:
        path_or_name: a .pth, .pt, .ckpt or .safetensors file, or a name of `PUBLISHED`, which is
            downloaded into checkpoints/ once.
        map_location: the device of the result.
        scale: needed for x3 where the metadata does not say it: its tensors look like x2's.

    Raises:
        WeightsError: no such file, no network, not an ESRGAN generator, or an incomplete one.
    """
    return _load(locate(path_or_name), scale)[0].to(map_location)


def init_generator(net: Generator, path: str | Path) -> tuple[list[str], list[str]]:
    """Start `net` from another generator, of the same network but perhaps at another scale.

    Returns:
        The tensors of `net` that stay as they were, and those of the file that were not taken.

    Raises:
        WeightsError: the file is no generator, or another network (its scale may differ).
    """
    other = load_generator(path)
    if differing := _differences(net, other, ignored=("scale",)):
        raise WeightsError(f"{path} is another network: it has {differing}; set the same here")
    own, given = net.state_dict(), other.state_dict()
    fits = {name for name in own.keys() & given.keys() if own[name].shape == given[name].shape}
    fresh, unused = sorted(own.keys() - fits), sorted(given.keys() - fits)
    net.load_state_dict({name: given[name] if name in fits else own[name] for name in own})
    return fresh, unused


def interpolate(psnr_net: Generator, gan_net: Generator, alpha: float) -> Generator:
    """Network interpolation: (1 - alpha) * PSNR + alpha * GAN for every weight (section 3.4).

    The running statistics of batch norm are interpolated like weights.

    Returns:
        A new network; the two stay as they are.

    Raises:
        WeightsError: the two are not the same network, or alpha is outside [0, 1].
    """
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


def _description(net: Generator) -> dict:
    """The kind of network, and the arguments it was built with."""
    arguments = _arguments(type(net), net.state_dict(), net.scale)
    return {"network": type(net).__name__} | arguments


def _load(path: Path, scale: int | None = None) -> tuple[Generator, dict[str, str]]:
    """The generator in a file, and the file's metadata."""
    content, metadata = _read(path)
    state = unwrap(path, content)
    kind: type[Generator] = SRResNet if "body.0.prelu.weight" in state else RRDBNet
    if kind is RRDBNet:
        state = rename(path, state)
    for name in ("conv_first.weight", FIRST_IN_BODY[kind], "conv_last.weight"):
        if name not in state or state[name].ndim != 4 or state[name].numel() == 0:
            raise WeightsError(
                f"{path} is no complete {kind.__name__}: {name} is missing or no kernel"
            )
    told = scale or (3 if metadata.get("scale") == "3" else None)
    arguments = _arguments(kind, state, told)
    if scale and arguments["scale"] != scale:
        raise WeightsError(f"{path} is x{arguments['scale']}, not x{scale}")
    if arguments["scale"] not in SCALES:
        raise WeightsError(f"{path} is x{arguments['scale']}, which no network here computes")
    with torch.device("meta"):  # shapes are compared before a byte is allocated
        net: Generator = kind(**arguments)
    expected = {name: t for name, t in net.state_dict().items() if not is_counter(name)}
    problems = _problems(state, expected)
    if problems:
        shown = [*sorted(problems)[:8], *(["..."] if len(problems) > 8 else [])]
        raise WeightsError(
            f"{path} is no complete {kind.__name__} ({len(problems)} problems): {'; '.join(shown)}"
        )
    try:
        weights = {name: state[name].to(torch.float32, copy=True).contiguous() for name in expected}
    except RuntimeError as error:
        raise WeightsError(
            f"{path} does not fit in memory ({str(error).splitlines()[0]})"
        ) from error
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise WeightsError(f"{path}: {broken[0]} holds numbers that are not finite")
    counters = {name: torch.tensor(0) for name in net.state_dict() if is_counter(name)}
    net.load_state_dict(weights | counters, assign=True)
    return net.eval(), metadata


def _problems(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
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


def _read(path: Path) -> tuple[dict, dict[str, str]]:
    """The dict in a file, and its metadata; of train.py's last.pt, the averaged generator."""
    if os.path.isdir(path):
        raise WeightsError(f"{path} is a folder; name a file in it")
    if not os.path.isfile(path):
        raise WeightsError(
            f"{path}: no such file. Names that are downloaded: {', '.join(PUBLISHED)}"
        )
    if path.suffix == ".onnx":
        raise WeightsError(f"{path} is ONNX, which is written but not read; give what it came from")
    try:
        content, metadata = load_tensors(path)
    except UnreadableError as error:
        raise WeightsError(f"{path} cannot be read as weights: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a generator's weights")
    ema, config = content.get("ema"), content.get("config")
    if isinstance(ema, dict) and isinstance(config, dict):
        told = {key: content[key] for key in ("phase", "step") if key in content}
        content, metadata = ema, told | {"scale": config.get("scale")}
    elif isinstance(content.get("metadata"), dict):  # as save_generator leaves it in a .pth
        metadata = content["metadata"]
    return content, {str(key): str(value) for key, value in metadata.items()}


def _arguments(kind: type, state: dict[str, Tensor], scale: int | None) -> dict[str, Any]:
    """A network's arguments, from names and shapes; only `scale` separates RRDBNet's x3 from x2."""
    return (_srresnet_arguments if kind is SRResNet else _rrdbnet_arguments)(state, scale)


def _srresnet_arguments(state: dict[str, Tensor], scale: int | None) -> dict[str, Any]:
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


def _rrdbnet_arguments(state: dict[str, Tensor], scale: int | None) -> dict[str, Any]:
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


# ------------------------------------------------------------------------------------ file out


def save_generator(
    net: Generator, path: str | Path, layout: str = "basicsr", metadata: dict | None = None
) -> None:
    """Write a generator's weights in their own precision, whole or not at all.

    Args:
        net: the network, on any device.
        path: ends in .safetensors or .pth; for "onnx", in .onnx.
        layout: "basicsr", model.py's names, and in a .pth its key "params"; "official" and "old",
            what the ESRGAN repository and its first release load; "onnx", a program with dynamic
            height and width that takes and gives (1, channels, H, W). SRResNet has its own names
            only, which "basicsr" stands for.
        metadata: anything JSON can hold; the scale and the network are always added. A .pth in
            the official or old layout has no place for it.

    Raises:
        ValueError: another suffix or layout, ESRGAN+ in another than its own, the old one, or
            SRResNet in one of the ESRGAN repository's.
        WeightsError: ONNX without the onnx package.
    """
    path = Path(path)
    if layout not in SUFFIXES:
        raise ValueError(f"layout is {layout!r}; it can be {', '.join(SUFFIXES)}")
    if path.suffix not in SUFFIXES[layout]:
        raise ValueError(f"{path}: {layout} is written to {' or '.join(SUFFIXES[layout])}")
    network = type(net).__name__
    if network == "SRResNet" and layout not in ("basicsr", "onnx"):
        raise ValueError(f"{path}: SRResNet has no {layout} layout; choose basicsr or onnx")
    if network == "RRDBNet" and _description(net)["plus"] and layout not in ("old", "onnx"):
        raise ValueError(f"{path}: ESRGAN+ exists in the old layout only; choose old or onnx")
    described = (metadata or {}) | {"network": network, "scale": net.scale}
    strings = {key: v if isinstance(v, str) else json.dumps(v) for key, v in described.items()}
    if layout == "onnx":
        content = onnx_program(net, strings)
    else:
        theirs = names_in(LAYOUTS[layout], len(net.body), len(net.stages))
        split = ((name.rpartition("."), tensor) for name, tensor in net.state_dict().items())
        state = {
            f"{theirs.get(layer, layer)}.{kind}": tensor.contiguous().cpu()
            for (layer, _, kind), tensor in split
            if kind not in COUNTERS
        }
        if path.suffix == ".safetensors":
            content = _in_order(safetensors.torch.save(state, strings))
        else:
            # BasicSR's own programs look for "params"; the official one for the bare tensors.
            wrapped = {"params": state, "metadata": strings} if layout == "basicsr" else state
            buffer = io.BytesIO()
            torch.save(wrapped, buffer)
            content = buffer.getvalue()
    with replacing(path) as file:
        file.write(content)


def _in_order(content: bytes) -> bytes:
    """Sort the metadata, which safetensors writes in random order: equal weights, equal files."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors have to start at a multiple of 8
    return len(encoded).to_bytes(8, "little") + encoded + content[start:]


# -------------------------------------------------------------------------------- command line


def main() -> int:
    arguments = parse_args()
    if arguments.command == "interpolate" and arguments.pictures:
        return show_alphas(arguments)
    inputs = [locate(name) for name in arguments.inputs]
    if any(
        os.path.exists(path) and path.resolve() == arguments.output.resolve() for path in inputs
    ):
        raise WeightsError(f"{arguments.output} is an input; choose another name with -o")
    if not os.path.isdir(arguments.output.parent):
        raise WeightsError(f"{arguments.output.parent}: no such folder")
    loaded = [_load(path, arguments.scale) for path in inputs]
    net, metadata = loaded[-1]
    metadata |= {"source": printable(" + ".join(path.name for path in inputs))}
    if arguments.command == "interpolate":
        net = interpolate(loaded[0][0], net, arguments.alpha[0])
        metadata |= {"alpha": str(arguments.alpha[0])}
    if arguments.half:
        net.half()
    try:
        save_generator(net, arguments.output, arguments.to, metadata)
    except (ValueError, OSError) as error:
        raise WeightsError(str(error)) from error
    size = arguments.output.stat().st_size / 2**20
    print(printable(f"x{net.scale}, {arguments.to}, {size:.1f} MiB: {arguments.output}"))
    if arguments.to != "onnx" and isinstance(net, RRDBNet) and net.scale == 3:
        print("Other programs cannot tell x3 from x2 by its tensors: name the scale to them.")
    return 0


def show_alphas(arguments: argparse.Namespace) -> int:
    """Strips of photographs from the PSNR network to the GAN; returns the exit status."""
    psnr_net, gan_net = (load_generator(name, scale=arguments.scale) for name in arguments.inputs)
    check_channels(gan_net, arguments.inputs[1])
    upscalers = {
        alpha: Upscaler(interpolate(psnr_net, gan_net, alpha), arguments.device)
        for alpha in arguments.alpha or ALPHAS
    }
    output = arguments.output or Path("results/interpolated")
    failures = write_strips(arguments.pictures, output, arguments.hr, upscalers)
    for failure in failures:
        print(printable(f"Failed: {failure}"), file=sys.stderr)
    return 1 if failures else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="weights.py", description="Convert and interpolate ESRGAN generators."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="write a generator in another layout")
    convert.add_argument(
        "inputs", nargs=1, type=not_empty, metavar="WEIGHTS", help="a file or a published name"
    )
    mix = commands.add_parser("interpolate", help="between a PSNR network and a GAN (section 3.4)")
    mix.add_argument(
        "inputs", nargs=2, type=not_empty, metavar=("PSNR", "GAN"), help="files or published names"
    )
    mix.add_argument(
        "--alpha",
        type=float,
        nargs="+",
        help=f"0: PSNR, 1: GAN; with --pictures several (default: {' '.join(map(str, ALPHAS))})",
    )
    mix.add_argument(
        "--pictures",
        type=a_path,
        metavar="PHOTOS",
        help="write no network, but what it makes of a photograph, or of each in a folder, at "
        "every alpha, side by side; OUT is then a folder (default: results/interpolated)",
    )
    mix.add_argument(
        "--hr", type=a_path, metavar="DIR", help="true HR images of PHOTOS: PSNR beside each alpha"
    )
    mix.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    for command in (convert, mix):
        command.add_argument("-o", "--output", type=a_path, metavar="OUT", help="the file to write")
        command.add_argument("--to", choices=SUFFIXES, default="basicsr")
        command.add_argument("--half", action="store_true", help="fp16: half the size")
        command.add_argument("--scale", type=int, help="3, where the file cannot tell x3 from x2")
    arguments = parser.parse_args()
    pictures = arguments.command == "interpolate" and arguments.pictures
    if not pictures and arguments.output is None:
        parser.error("-o OUT is missing: the file to write")
    if pictures and (arguments.half or arguments.to != "basicsr"):
        parser.error("--half and --to are for the network, which --pictures does not write")
    if arguments.command == "interpolate" and not pictures:
        if arguments.hr:
            parser.error("--hr DIR goes with --pictures PHOTOS")
        if len(arguments.alpha or ()) != 1:
            parser.error("give one --alpha for the network, or --pictures PHOTOS to see several")
    return arguments


if __name__ == "__main__":
    prepare_output()
    try:
        sys.exit(main())
    except (WeightsError, UsageError, DeviceError) as error:
        print(printable(f"weights.py: {error}"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("weights.py: interrupted; what was done is kept")
