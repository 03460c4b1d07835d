"""ncnn's pairs of files, which the Real-ESRGAN programs and Upscayl load: NAME.param, the layers as
text, and NAME.bin, their weights in the same order.

https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure says how they are laid out,
and ncnn's src/modelbin.cpp what stands before weights.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from formats.layouts import WeightsError
from formats.ncnn_graphs import (
    KNOWN,
    WEIGHTED,
    Graph,
    Known,
    Layer,
    folds,
    generator_in,
    is_folding,
    name_of_other,
    rrdbnet_graph,
    shapes_of,
    srresnet_graph,
    with_splits,
)
from formats.others import QUANTISED
from formats.tensors import UnreadableError

MAGIC = "7767517"
BINARY_MAGIC = int(MAGIC).to_bytes(4, "little")
BINARY = "it is a binary .param.bin; give the .param, which is text"
PNNXS = "pnnx keeps it for itself; give the .ncnn.param that it wrote, too"
# What stands before a kernel; biases and slopes are fp32 without it.
FP16, BF16, FP32, RAW = 0x01306B47, 0x01348B83, 0, 0x0002C056
DTYPES: dict[int, np.dtype[Any]] = {FP16: np.dtype("<f2"), FP32: np.dtype("<f4")}
DTYPES |= {BF16: np.dtype("<i2"), RAW: np.dtype("<f4")}  # NumPy has no bfloat16
INT8_FLAG = 0x000D4B38
ARRAYS = -23300  # the keys of array parameters count down from here
TOLD = (1, 2, 3, 4, 8)  # the scales that Upscayl reads in a name
TORCHS = (b"PK", b"\x80")  # how PyTorch's files begin: archives and pickles
NOT_NCNN = (".safetensors", ".pth", ".pt", ".ckpt", ".onnx")


class Pair(NamedTuple):
    """The two files."""

    param: Path
    binary: Path


# ------------------------------------------------------------------------------------------ reading


def pair_of(path: Path) -> Pair | None:
    """The pair that a file is one of; None if it is something else, such as PyTorch's .bin.

    Raises:
        UnreadableError: it is the layers in binary, or pnnx's own.
    """
    with open(path, "rb") as file:
        start = file.read(8)
    suffix, flag = path.suffix.lower(), int.from_bytes(start[:4], "little")
    if start.startswith(BINARY_MAGIC):
        raise UnreadableError(BINARY)
    if suffix == ".param" or start.startswith(MAGIC.encode()):
        return Pair(path, path.with_suffix(".bin"))
    if path.name.lower().endswith(".pnnx.bin"):
        raise UnreadableError(PNNXS)
    known = len(start) == 8 and flag in (*DTYPES, INT8_FLAG)
    beside = os.path.isfile(path.with_suffix(".param")) and not start.startswith(TORCHS)
    if suffix == ".bin" and (known or beside):
        return Pair(path.with_suffix(".param"), path)
    return None


def load_ncnn(pair: Pair) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The generator in a pair, published or anyone's: its tensors under model.py's names.

    The layers are read, whatever they are called: exporters write the same network in several ways.

    Returns:
        The tensors, fp16, bf16 or fp32 as they are in the file, and the scale, which tells x3 from
        x2.

    Raises:
        UnreadableError: a file of the two is missing, damaged, or belongs to another.
        WeightsError: the network is another, or is quantised.
    """
    if pair.param == pair.binary:
        raise UnreadableError("it is the text of a .param; the two have each other's names")
    layers = parse(pair.param.read_bytes()) if os.path.isfile(pair.param) else []
    if missing := [path.name for path in pair if not os.path.isfile(path)]:
        raise UnreadableError(f"{missing[0]}, which belongs to it, is not in the same folder")
    if any(layer.params.get(8) and layer.kind == "Convolution" for layer in layers):
        raise WeightsError(f"{pair.param} {QUANTISED}")
    unknown = any(layer.kind not in KNOWN for layer in layers)
    try:
        known = None if unknown else generator_in(layers)
        for folding in filter(is_folding, layers if known else ()):
            shapes_of(folding)  # the others' were looked at
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:  # nonsense numbers
        raise UnreadableError(f"its layers are damaged ({error}); get it again") from error
    if known is None:
        what = f"{name_of_other(layers)}, which only ncnn's own programs compute"
        raise WeightsError(f"{pair.param} is not an ESRGAN generator: it holds {what}")
    return _state(layers, known, pair), {"scale": str(known.scale)}


def _state(layers: list[Layer], known: Known, pair: Pair) -> dict[str, Tensor]:
    reader, names = _Reader(pair.binary), iter(known.names)
    state: dict[str, Tensor] = {}
    for layer in (layer for layer in layers if layer.kind in WEIGHTED):
        tensors = reader.tensors(layer)
        if not is_folding(layer):
            name = next(names)
            state |= {f"{name}.{kind}": tensor for kind, tensor in tensors.items()}
        elif not folds(tensors["weight"]):
            raise WeightsError(f"{pair.param}: {layer.name} mixes pixels, unlike any ESRGAN")
    reader.finish()
    return state


class _Reader:
    """The tensors in a .bin, one after the other."""

    def __init__(self, path: Path):
        self.path, self.content, self.position = path, path.read_bytes(), 0

    def tensors(self, layer: Layer) -> dict[str, Tensor]:
        return {kind: self._next(layer, kind, shape) for kind, shape in shapes_of(layer).items()}

    def finish(self) -> None:
        if left := len(self.content) - self.position:
            raise UnreadableError(
                f"{self.path.name} has {left} bytes more than it asks for; they are of two pairs"
            )

    def _next(self, layer: Layer, kind: str, shape: tuple[int, ...]) -> Tensor:
        flag = FP32
        if (layer.kind, kind) == ("Convolution", "weight"):
            flag = int.from_bytes(self._take(4), "little")
        if flag == INT8_FLAG:
            raise WeightsError(f"{self.path} {QUANTISED}")
        if flag not in DTYPES:
            raise UnreadableError(
                f"{self.path.name} has no weights where {layer.name}'s should begin: it is of "
                "another pair, or quantised, or damaged"
            )
        dtype = DTYPES[flag]
        size = math.prod(shape) * dtype.itemsize
        data = np.frombuffer(self._take(size + -size % 4)[:size], dtype)  # begins at multiples of 4
        tensor = torch.from_numpy(data.reshape(shape).astype(dtype.newbyteorder("=")))
        return tensor.view(torch.bfloat16) if flag == BF16 else tensor

    def _take(self, size: int) -> bytes:
        self.position += size
        if self.position > len(self.content):
            raise UnreadableError(
                f"{self.path.name} is cut short, or of another pair; get it again"
            )
        return self.content[self.position - size : self.position]


def parse(content: bytes) -> list[Layer]:
    """The layers of a .param.

    Raises:
        UnreadableError: it is none, or a damaged one.
    """
    if content.startswith(BINARY_MAGIC):
        raise UnreadableError(BINARY)
    text = content.decode("utf-8", errors="replace")
    magic, *lines = text.split("\n")
    if magic.strip() != MAGIC:
        raise UnreadableError(f"it does not begin with {MAGIC}, as ncnn's .param files do")
    if any(line.startswith("pnnx.") for line in lines):
        raise UnreadableError(PNNXS)
    try:
        count, blobs = map(int, lines[0].split())
        layers = [_layer(line) for line in lines[1:] if line.strip()]
        if len(layers) < count:
            raise UnreadableError(f"it is cut short after {len(layers)} of {count} layers")
        given: set[str] = set()
        for layer in layers:
            if missing := [blob for blob in layer.inputs if blob not in given]:
                raise ValueError(f"{layer.name} reads {missing[0]}, which no layer before it gives")
            given.update(layer.outputs)
        if len(layers) > count or len(given) > blobs:
            raise ValueError(
                f"{len(layers)} layers and {len(given)} blobs, not {count} and {blobs}"
            )
    except UnreadableError:
        raise
    except (ValueError, IndexError) as error:
        raise UnreadableError(f"it is damaged ({error}); get it again") from error
    return layers


def _layer(line: str) -> Layer:
    kind, name, input_count, output_count, *words = line.split()
    first, last = int(input_count), int(input_count) + int(output_count)
    if len(words) < last:
        raise ValueError(f"{name} names {len(words)} of {last} blobs")
    params = dict(_param(word) for word in words[last:])
    return Layer(kind, name, tuple(words[:first]), tuple(words[first:last]), params)


def _param(word: str) -> tuple[int, Any]:
    key, _, value = word.partition("=")
    if int(key) <= ARRAYS:
        return ARRAYS - int(key), tuple(map(_number, value.split(",")[1:]))  # the first: how many
    if "," in value and not _is_text(
        value
    ):  # newer files' arrays, of one value with a comma behind
        return int(key), tuple(map(_number, value.removesuffix(",").split(",")))
    return int(key), _number(value)


def _number(text: str) -> int | float | str:
    if _is_text(text):
        return text
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


def _is_text(value: str) -> bool:
    """Expressions and names."""
    return value.startswith('"') or value[:1].isalpha()


# ------------------------------------------------------------------------------------------ writing


def ncnn_program(net: Any, half: bool = True) -> tuple[bytes, bytes]:
    """The contents of a .param and a .bin for a generator.

    Args:
        net: the generator.
        half: kernels in fp16, as these programs store them anyway; everything else is in fp32.

    Raises:
        ValueError: it does not compute RGB from RGB, or has weights that fp16 cannot hold.
    """
    if (net.in_channels, net.out_channels) != (3, 3):
        channels = f"{net.in_channels} channels to {net.out_channels}"
        raise ValueError(f"ncnn's programs take RGB to RGB; this network is from {channels}")
    state = {name: tensor.detach().float().cpu() for name, tensor in net.state_dict().items()}
    if "prelu_first.weight" in state:
        graph = srresnet_graph(state, net.stages)
    else:
        graph = rrdbnet_graph(state, net.stages, net.unshuffle)
    return _text(with_splits(graph.layers)).encode(), b"".join(_weights(graph, half))


def _text(layers: list[Layer]) -> str:
    lines = [MAGIC, f"{len(layers)} {sum(len(layer.outputs) for layer in layers)}"]
    for kind, name, inputs, outputs, params in layers:
        words = [f"{kind:<24} {name:<24} {len(inputs)} {len(outputs)}", *inputs, *outputs]
        lines.append(" ".join([*words, *(_written(*param) for param in params.items())]))
    return "\n".join(lines) + "\n"


def _written(key: int, value: Any) -> str:
    if isinstance(value, tuple):
        return f"{ARRAYS - key}={','.join([str(len(value)), *(f'{each:e}' for each in value)])}"
    return f"{key}={value:e}" if isinstance(value, float) else f"{key}={value}"


def _weights(graph: Graph, half: bool) -> Iterator[bytes]:
    for name in graph.tensors:
        tensor = graph.state[name].contiguous()
        if tensor.ndim == 4 and half:
            rounded = tensor.half()
            if not rounded.isfinite().all():
                raise ValueError(f"{name} has weights that fp16, ncnn's format, cannot hold")
            content = rounded.numpy().astype(DTYPES[FP16]).tobytes()
            yield FP16.to_bytes(4, "little") + content + bytes(-len(content) % 4)
        else:
            flag = FP32.to_bytes(4, "little") if tensor.ndim == 4 else b""
            yield flag + tensor.numpy().astype(DTYPES[FP32]).tobytes()


def pair_named(path: Path, scale: int | None = None) -> Pair:
    """The files for -o NAME, NAME.param or NAME.bin; with a scale, that of the network for them.

    Raises:
        WeightsError: NAME is a folder's, or another format's, or tells programs another scale;
            they know no such scale.
    """
    if path.suffix in NOT_NCNN or os.path.isdir(path):
        raise WeightsError(f"{path}: ncnn is written to NAME.param and NAME.bin; give that NAME")
    if scale and scale not in TOLD:
        raise WeightsError(f"{path}: Upscayl computes no x{scale} network; choose another --to")
    name = path.stem if path.suffix in (".param", ".bin") else path.name
    told = {scale_told(name), scale_told(name.lower())}
    if scale and told != {scale}:
        others = " or ".join(f"x{each}" for each in sorted(told - {scale}))
        raise WeightsError(
            f"{path}: Upscayl would take that name's network for {others}, but it is x{scale}; "
            f"call it {path.with_name(f'net-x{scale}')}, for example"
        )
    return Pair(path.with_name(f"{name}.param"), path.with_name(f"{name}.bin"))


def scale_told(name: str) -> int:
    """The scale that upscayl-ncnn reads in a name: of the first of these marks that is in it.

    src/main.cpp of upscayl/upscayl-ncnn. Upscayl itself looks at the name in small letters.
    """
    scales = (scale for scale in TOLD if f"x{scale}" in name or f"{scale}x" in name)
    return next(scales, 4)
