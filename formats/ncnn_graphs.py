"""The generators as ncnn's layers: to write them, and to know them again in others' files.

Only layers are written that the Real-ESRGAN programs are built with: the original leaves out Reorg
and BatchNorm, among others (src/CMakeLists.txt of xinntao/Real-ESRGAN-ncnn-vulkan).
What the numbers in a layer's parameters stand for:
https://github.com/Tencent/ncnn/wiki/operation-param-weight-table
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

INPUT, OUTPUT = "data", "output"  # what the Real-ESRGAN programs call the two ends
SLOPE, RESIDUAL_SCALE = 0.2, 0.2  # of RRDBNet
NORM_EPS = 1e-5  # of torch's batch norm

Terms = tuple[tuple[int, float], ...]


class Layer(NamedTuple):
    """A line of a .param.

    inputs, outputs: names of blobs; params: numbers, or tuples of them.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: dict[int, Any]


class Graph:
    """Layers in order, and the names in `state` of the tensors that they have, in order.

    A blob is called like the layer that gives it. It may go to several layers, for which ncnn wants
    a Split: see `with_splits`.
    """

    def __init__(self, state: dict[str, Tensor]):
        self.state = state
        self.layers = [Layer("Input", "input", (), (INPUT,), {})]
        self.tensors: list[str] = []

    def add(
        self, kind: str, inputs: tuple[str, ...], params: dict[int, Any], name: str = ""
    ) -> str:
        """A layer; returns its blob."""
        name = name or f"{kind.lower()}_{len(self.layers)}"
        self.layers.append(Layer(kind, name, inputs, (name,), params))
        return name

    def conv(self, name: str, x: str, leaky: bool = False, stride: int = 1) -> str:
        """A convolution; with a stride, of as many pixels and without padding."""
        weight = self.state[f"{name}.weight"]
        biased = f"{name}.bias" in self.state
        count, _, side, _ = weight.shape
        params: dict[int, Any] = {
            0: count,
            1: side,
            4: side // 2,
            5: int(biased),
            6: weight.numel(),
        }
        if stride > 1:
            params |= {3: stride, 4: 0}
        if leaky:
            params |= {9: 2, 10: (SLOPE,)}
        self.tensors += [f"{name}.weight", *([f"{name}.bias"] if biased else [])]
        return self.add("Convolution", (x,), params, name)

    def prelu(self, name: str, x: str) -> str:
        self.tensors.append(f"{name}.weight")
        return self.add("PReLU", (x,), {0: self.state[f"{name}.weight"].numel()}, name)

    def plus(self, x: str, y: str) -> str:
        return self.add("BinaryOp", (x, y), {})

    def residual(self, x: str, shortcut: str) -> str:
        """shortcut + RESIDUAL_SCALE * x"""
        return self.add("Eltwise", (x, shortcut), {0: 1, 1: (RESIDUAL_SCALE, 1.0)})

    def nearest(self, x: str, factor: int) -> str:
        return self.add("Interp", (x,), {0: 1, 1: float(factor), 2: float(factor)})

    def finish(self) -> "Graph":
        """Call the last blob what the programs ask for."""
        self.layers[-1] = self.layers[-1]._replace(outputs=(OUTPUT,))
        return self


# ------------------------------------------------------------------------------------ the networks


def rrdbnet_graph(state: dict[str, Tensor], factors: list[int], unshuffle: int) -> Graph:
    """RRDBNet as layers.

    Args:
        state: its tensors; on the meta device for the layers alone.
        factors: of its upsampling stages.
        unshuffle: the side of the squares of pixels that are folded into channels at first.
    """
    graph = Graph(state)
    x = INPUT
    if unshuffle > 1:
        folded = state["conv_first.weight"].shape[1]
        shape = (folded, folded // unshuffle**2, unshuffle, unshuffle)
        kernel = folding_kernel(shape, state["conv_first.weight"].device)
        graph.state = state | {"unshuffle.weight": kernel}
        # Reflected, as RRDBNet does it, and by more than is needed: what is no full square goes.
        # A convolution folds the squares: Reorg is not built into the original program.
        x = graph.add("Padding", (x,), {1: unshuffle - 1, 3: unshuffle - 1, 4: 2})
        x = graph.conv("unshuffle", x, stride=unshuffle)
    x = shallow = graph.conv("conv_first", x)
    for i in range(sum(name.endswith("rdb1.conv1.weight") for name in state)):
        x = _rrdb(graph, f"body.{i}", x)
    x = graph.plus(shallow, graph.conv("conv_body", x))
    for m, factor in enumerate(factors, start=1):
        x = graph.conv(f"conv_up{m}", graph.nearest(x, factor), leaky=True)
    x = graph.conv("conv_last", graph.conv("conv_hr", x, leaky=True))
    if unshuffle > 1:
        scale = math.prod(factors) // unshuffle
        size = graph.nearest(INPUT, scale) if scale > 1 else INPUT
        graph.add("Crop", (x, size), {})  # to the size of the second
    return graph.finish()


def _rrdb(graph: Graph, name: str, x: str) -> str:
    inner = x
    for j in (1, 2, 3):
        inner = _dense_block(graph, f"{name}.rdb{j}", inner)
    return graph.residual(inner, x)


def _dense_block(graph: Graph, name: str, x: str) -> str:
    plus = f"{name}.conv1x1.weight" in graph.state  # ESRGAN+'s
    outputs = [x]
    for k in (1, 2, 3, 4):
        joined = graph.add("Concat", tuple(outputs), {}) if k > 1 else x
        y = graph.conv(f"{name}.conv{k}", joined, leaky=True)
        if plus and k == 2:
            y = graph.plus(y, graph.conv(f"{name}.conv1x1", x))
        if plus and k == 4:
            y = graph.plus(y, outputs[2])
        outputs.append(y)
    return graph.residual(graph.conv(f"{name}.conv5", graph.add("Concat", tuple(outputs), {})), x)


def srresnet_graph(state: dict[str, Tensor], factors: list[int]) -> Graph:
    """SRResNet as layers; its batch norm becomes part of the convolutions before it."""
    graph = Graph(_without_batch_norm(state))
    x = shallow = graph.prelu("prelu_first", graph.conv("conv_first", INPUT))
    for i in range(sum(name.endswith("prelu.weight") for name in state)):
        inner = graph.prelu(f"body.{i}.prelu", graph.conv(f"body.{i}.conv1", x))
        x = graph.plus(x, graph.conv(f"body.{i}.conv2", inner))
    x = graph.plus(shallow, graph.conv("conv_body", x))
    for m, factor in enumerate(factors, start=1):
        x = graph.add("PixelShuffle", (graph.conv(f"conv_up{m}", x),), {0: factor})
        x = graph.prelu(f"prelu_up{m}", x)
    graph.conv("conv_last", x)
    return graph.finish()


def _without_batch_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network: (W x - mean) / std * weight + bias is a convolution, too."""
    plain = {name: tensor for name, tensor in state.items() if "bn" not in name}
    for norm in (name.removesuffix(".running_var") for name in state if "running_var" in name):
        of_norm = {kind: state[f"{norm}.{kind}"].double() for kind in ("weight", "bias")}
        factor = of_norm["weight"] / (state[f"{norm}.running_var"].double() + NORM_EPS).sqrt()
        shift = of_norm["bias"] - state[f"{norm}.running_mean"].double() * factor
        kernel = f"{norm.replace('bn', 'conv')}.weight"
        plain[kernel] = (state[kernel].double() * factor.view(-1, 1, 1, 1)).float()
        plain[kernel.replace("weight", "bias")] = shift.float()
    return plain


def folding_kernel(shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """With it, a convolution of its side as stride does what F.pixel_unshuffle does."""
    return torch.eye(shape[0], math.prod(shape[1:]), device=device).view(shape)


def folds(kernel: Tensor) -> bool:
    return torch.equal(kernel.float(), folding_kernel(tuple(kernel.shape)))


def with_splits(layers: list[Layer]) -> list[Layer]:
    """ncnn lets go of a blob once a layer has read it: for several readers it wants copies."""
    readers = Counter(blob for layer in layers for blob in layer.inputs)
    copies: dict[str, list[str]] = {}
    result = []
    for layer in layers:
        inputs = tuple(copies[blob].pop() if blob in copies else blob for blob in layer.inputs)
        result.append(layer._replace(inputs=inputs))
        for blob in layer.outputs:
            if readers[blob] > 1:
                copies[blob] = [f"{blob}_splitncnn_{i}" for i in range(readers[blob])]
                name = f"splitncnn_{len(copies) - 1}"
                result.append(Layer("Split", name, (blob,), tuple(copies[blob]), {}))
    return result


# ------------------------------------------------------------------------------- known by its graph

KNOWN = {"Input", "Split", "Dropout", "Noop", "Convolution", "PReLU", "ReLU", "Concat", "Eltwise"}
KNOWN |= {"BinaryOp", "Interp", "PixelShuffle", "Reorg", "Padding", "Crop", "Clip"}
WEIGHTED = ("Convolution", "PReLU")  # of these
UNSHUFFLES = (1, 2, 4)
# The factors of the upsampling stages, at scales 1, 2, 3, 4, 8 and 16; folding adds one or two.
STAGES: tuple[list[int], ...] = ([], [2], [3], *([2] * count for count in (2, 3, 4, 5, 6)))
MOST_JOINED = 5  # what comes into a dense block, and its first four convolutions' outputs


class Meanings:
    """Numbers for what layers compute: whatever gets the same number computes the same.

    Names do not count, nor how a computation is divided into layers: exporters have activations
    and sums in several forms. Convolutions are told apart by their order.
    """

    def __init__(self) -> None:
        self.numbers: dict[tuple, int] = {}
        self.computations: list[tuple] = []
        self.most_terms = 0  # of a sum: what comes in, and what each layer with weights gives

    def of(self, layers: list[Layer]) -> int:
        """The number of the last layer's output."""
        values: dict[str, int] = {}
        result = weighted = 0
        self.most_terms = 1 + sum(layer.kind in WEIGHTED for layer in layers)
        for layer in layers:
            result = self._of_layer(layer, [values[blob] for blob in layer.inputs], weighted)
            values |= dict.fromkeys(layer.outputs, result)
            weighted += layer.kind in WEIGHTED and not is_folding(layer)
        return result

    def _number(self, *computation: Any) -> int:
        if computation not in self.numbers:
            self.numbers[computation] = len(self.computations)
            self.computations.append(computation)
        return self.numbers[computation]

    def _of_layer(self, layer: Layer, inputs: list[int], weighted: int) -> int:
        get = layer.params.get
        match layer.kind, inputs:
            case "Input", []:
                return self._number("Input")
            case (("Split" | "Noop"), [x]):
                return x
            case "Dropout", [x]:  # it multiplies, and by 1 if nothing else is said
                return self._sum(((x, float(get(0, 1))),))
            case "Convolution", [x] if is_folding(layer):
                return self._folded(x, get(1, 0))
            case "Convolution", [x]:
                return self._convolved(layer, x, weighted)
            case "PReLU", [x]:
                return self._number("prelu", weighted, x)
            case "ReLU", [x]:
                return self._number("leaky", float(get(0, 0)), x)
            case "Concat", [_, *_] if get(0, 0) == 0:
                return self._joined(inputs)
            case "Eltwise", [_, *_] if get(0, 0) == 1:
                return self._sum(zip(inputs, get(1) or [1.0] * len(inputs), strict=True))
            case "BinaryOp", [x, y] if get(0, 0) in (0, 1):
                return self._sum(((x, 1.0), (y, -1.0 if get(0, 0) else 1.0)))
            case "BinaryOp", [x] if get(0, 0) == 2 and get(1, 0):
                return self._sum(((x, float(get(2, 0))),))
            case "Interp", [x] if get(0, 0) == 1 and get(1, 1) == get(2, 1) and not get(3, 0):
                return self._number("nearest", float(get(1, 1)), x)
            case "PixelShuffle", [x] if not get(1, 0):
                return self._number("shuffle", get(0, 1), x)
            case "Reorg", [x] if not get(1, 0):
                return self._folded(x, get(0, 1))
            case "Crop", [x, size] if not any(layer.params.values()) and self._is_a_picture(size):
                return x  # takes off what padding added
        given = tuple(sorted((key, value) for key, value in layer.params.items() if value))
        return self._number(layer.kind, given, *inputs)

    def _convolved(self, layer: Layer, x: int, weighted: int) -> int:
        """Weights have a shape, which is looked at elsewhere; everything else is ordinary."""
        side, padding = layer.params.get(1, 0), layer.params.get(4, 0)
        ordinary = {1: side, 2: 1, 3: 1, 4: side // 2, 7: 1, 18: 0, 19: 0}
        ordinary |= {11: side, 12: 1, 13: 1, 14: padding, 15: padding, 16: padding}
        others = {k: v for k, v in layer.params.items() if k in ordinary and v != ordinary[k]}
        y = self._number("convolution", weighted, tuple(sorted(others.items())), x)
        match layer.params.get(9, 0), layer.params.get(10, ()):
            case 0, _:
                return y
            case 1, _:
                return self._number("leaky", 0.0, y)
            case 2, (slope,):
                return self._number("leaky", float(slope), y)
        return self._number("activation", layer.params[9], y)

    def _folded(self, x: int, side: int) -> int:
        """Squares of pixels as channels; reflected pixels beside them only complete the last."""
        match self.computations[x]:
            case "Padding", ((1, below), (3, right), (4, 2)), inner if below == right == side - 1:
                return self._number("folded", side, inner)
        return self._number("folded", side, x)

    def _joined(self, inputs: list[int]) -> int:
        parts: list[int] = []
        for x in inputs:
            kind, *inner = self.computations[x]
            parts += inner if kind == "joined" else [x]
        if len(parts) > MOST_JOINED:  # no network here has it; joined on, it could double each time
            return self._number("Concat", *inputs)
        return self._number("joined", *parts)

    def _sum(self, terms: Iterable[tuple[int, float]]) -> int:
        terms, total = tuple(terms), dict[int, float]()
        for x, factor in terms:
            for inner, inner_factor in self._terms(x):
                total[inner] = total.get(inner, 0.0) + factor * inner_factor
        if len(total) > self.most_terms:  # as of no network here; summed on, it could grow for ever
            return self._number("Sum", terms)
        rounded = tuple(sorted((x, round(factor, 5)) for x, factor in total.items()))
        alone = len(rounded) == 1 and rounded[0][1] == 1
        return rounded[0][0] if alone else self._number("sum", rounded)

    def _terms(self, x: int) -> Terms:
        kind, *inner = self.computations[x]
        return inner[0] if kind == "sum" else ((x, 1.0),)

    def _is_a_picture(self, x: int) -> bool:
        kind, *inner = self.computations[x]
        return kind == "Input" or (kind == "nearest" and self._is_a_picture(inner[1]))


def is_folding(layer: Layer) -> bool:
    """Whether a convolution has the shape of one that folds squares of pixels into channels."""
    get = layer.params.get
    side, stride = get(1, 0), get(3, 1)
    unpadded = not get(4, 0) and not get(5, 0)
    return layer.kind == "Convolution" and 1 < side == stride and unpadded


class Known(NamedTuple):
    """A generator that was known by its layers.

    names: of its layers with weights, in the order of the file's, as model.py calls them.
    """

    names: list[str]
    scale: int


def generator_in(layers: list[Layer]) -> Known | None:
    """The generator that these layers compute; None if it is another network."""
    weighted = [layer for layer in layers if layer.kind in WEIGHTED and not is_folding(layer)]
    folds = [layer.params.get(1, 0) for layer in layers if is_folding(layer)]
    folds += [layer.params.get(0, 1) for layer in layers if layer.kind == "Reorg"]
    unshuffle = folds[0] if folds else 1
    if unshuffle not in UNSHUFFLES or not weighted:
        return None
    meanings = Meanings()
    wanted = meanings.of(without_last_clamp(layers))
    for factors in STAGES:
        for names in _possible_names(weighted, len(factors)):
            shapes = _shapes(names, weighted)
            if "prelu_first" in names:
                graph = srresnet_graph(shapes, factors)
            else:
                graph = rrdbnet_graph(shapes, factors, unshuffle)
            if meanings.of(graph.layers) == wanted:
                return Known(names, math.prod(factors) // unshuffle)
    return None


def without_last_clamp(layers: list[Layer]) -> list[Layer]:
    """Without one to [0, 1] at the end, which what is made of the result does anyway."""
    *others, last = layers
    if last.kind == "Clip" and (last.params.get(0), last.params.get(1)) == (0, 1):
        return others if others and last.inputs == others[-1].outputs else layers
    if last.kind == "Convolution" and (last.params.get(9), last.params.get(10)) == (3, (0, 1)):
        params = {key: value for key, value in last.params.items() if key not in (9, 10)}
        return [*others, last._replace(params=params)]
    return layers


def _possible_names(weighted: list[Layer], stages: int) -> Iterator[list[str]]:
    """The names that so many layers with weights would have in generators with these stages."""
    kinds = [layer.kind for layer in weighted]
    ups = range(1, stages + 1)
    plus = any(layer.params.get(1) == 1 for layer in weighted)
    dense = ["conv1", "conv2", *(["conv1x1"] if plus else []), "conv3", "conv4", "conv5"]
    blocks, rest = divmod(len(weighted) - 4 - stages, 3 * len(dense))
    if blocks > 0 and rest == 0 and "PReLU" not in kinds:
        body = (f"body.{i}.rdb{j}" for i in range(blocks) for j in (1, 2, 3))
        inner = [f"{block}.{conv}" for block in body for conv in dense]
        around = [f"conv_up{m}" for m in ups]
        yield ["conv_first", *inner, "conv_body", *around, "conv_hr", "conv_last"]
    blocks, rest = divmod(len(weighted) - 4 - 2 * stages, 3)
    if blocks > 0 and rest == 0:
        inner = [f"body.{i}.{part}" for i in range(blocks) for part in ("conv1", "prelu", "conv2")]
        around = [name for m in ups for name in (f"conv_up{m}", f"prelu_up{m}")]
        names = ["conv_first", "prelu_first", *inner, "conv_body", *around, "conv_last"]
        if kinds == ["PReLU" if "prelu" in name else "Convolution" for name in names]:
            yield names


def _shapes(names: list[str], weighted: list[Layer]) -> dict[str, Tensor]:
    """Tensors without numbers."""
    return {
        f"{name}.{kind}": torch.empty(shape, device="meta")
        for name, layer in zip(names, weighted, strict=True)
        for kind, shape in shapes_of(layer).items()
    }


def shapes_of(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a layer with weights, in the order of the .bin.

    Raises:
        ValueError: its numbers do not fit one another.
    """
    get = layer.params.get
    count = int(get(0, 0))
    if layer.kind == "PReLU":
        return {"weight": (count,)}
    side, size = int(get(1, 0)), int(get(6, 0))
    if min(count, side, size) < 1 or size % (count * side * side):
        raise ValueError(f"{layer.name}: {size} weights for {count} kernels of {side}x{side}")
    kernel = {"weight": (count, size // (count * side * side), side, side)}
    return kernel | ({"bias": (count,)} if get(5, 0) else {})


def name_of_other(layers: list[Layer]) -> str:
    """What to call a network that is none of ours."""
    kinds = Counter(layer.kind for layer in layers)
    sums = kinds["BinaryOp"] + kinds["Eltwise"]
    signs = {
        "RIFE": any(kind.startswith("rife.") for kind in kinds),
        "Real-CUGAN or waifu2x": kinds["Deconvolution"] > 0,
        "SwinIR or another transformer": kinds["LayerNorm"] or kinds["MultiHeadAttention"],
        "SRVGGNetCompact": kinds["PReLU"] and kinds["PixelShuffle"] and sums == 1,
        "SPAN": kinds["Sigmoid"] > 0 and kinds["PixelShuffle"] == 1,
        "EDSR or one like it": kinds["ReLU"] and kinds["PixelShuffle"] and sums > 1,
        "an image classifier": kinds["InnerProduct"] and kinds["Softmax"],
    }
    if name := next((name for name, sign in signs.items() if sign), None):
        return name
    common = [kind for kind, _ in kinds.most_common(7) if kind not in ("Input", "Split")]
    return f"another network, of layers such as {', '.join(common[:5])}"
