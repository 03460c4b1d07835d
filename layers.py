"""Convolutions in the form that a CPU computes fastest, and in the precision that pixels need.

They give what torch's own layers give, but for rounding; how much faster they are is measured in
benchmarks/README.md.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BAND = 96  # rows that `in_bands` takes at once: few enough for a cache, enough for all cores

WORTH_WINOGRAD = 16  # channels: with fewer, its sums cost more than they save


def both_ways(rows: list[list[float]], divisor: int = 1) -> Tensor:
    """What a matrix makes of the columns of a square and then of its rows, as one matrix."""
    matrix = torch.tensor(rows, dtype=torch.float64) / divisor
    return torch.kron(matrix, matrix).float()


# Winograd's F(4x4, 3x3), which takes polynomials at 0, 1, -1, 2, -2 and infinity.
SIDE, REACH = 4, 6  # of a square of results, and of the values that it depends on
TO_SUMS = both_ways(  # of those values
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
TO_FACTORS = both_ways(  # of a kernel
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], divisor=24
)
TO_RESULTS = both_ways(  # of the products of both
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)


def wants_standard_layers(x: Tensor) -> bool:
    """On GPUs, where other forms were not measured, and for ONNX, whose kernels are constants."""
    # Asking torch.onnx imports it.
    return x.device.type != "cpu" or (is_recorded() and torch.onnx.is_in_onnx_export())


def is_recorded() -> bool:
    """Whether the network is being traced, exported or compiled, for images of any size."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


class RowsConv2d(nn.Conv2d):
    """A convolution to the three channels of an image, with stride 1, faster on a CPU.

    A CPU computes about 16 channels at once and would use three of them. Here each row of the
    kernel gets channels of its own, which are then shifted into place and added up.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, H, W): torch's result but for rounding."""
        if wants_standard_layers(x) or self.padding_mode != "zeros":
            return super().forward(x)
        kernel = self.weight.permute(2, 0, 1, 3).flatten(0, 1).unsqueeze(2)  # rows * out channels
        above, left = (int(padding) for padding in self.padding)
        padded = F.pad(F.conv2d(x, kernel, padding=(0, left)), (0, 0, above, above))
        rows = padded.chunk(self.kernel_size[0], 1)
        moved = (row[:, :, i : i + x.shape[2]] for i, row in enumerate(rows))
        assert self.bias is not None
        return sum(moved) + self.bias.view(-1, 1, 1)


def convolve_enlarged(conv: nn.Conv2d, x: Tensor, factor: int) -> Tensor:
    """`conv(F.interpolate(x, scale_factor=factor, mode="nearest"))`, faster on a CPU.

    Many of the nine pixels under the kernel are copies of one pixel. Their weights are added up
    first, into the kernel of a transposed convolution: at factor 2, four products a pixel instead
    of nine, and the enlarged features take no memory.

    Args:
        conv: 3x3, with stride 1 and padding 1.
        x: (N, in, H, W).

    Returns:
        (N, out, factor * H, factor * W), the same but for rounding.
    """
    if wants_standard_layers(x) or not is_plain(conv):
        return conv(F.interpolate(x, scale_factor=factor, mode="nearest"))
    kernel = F.pad(conv.weight.flip(2, 3).transpose(0, 1), [factor - 1] * 4)
    kernel = F.avg_pool2d(kernel, factor, stride=1, divisor_override=1)  # sums, factor + 2 a side
    return F.conv_transpose2d(x, kernel, conv.bias, stride=factor, padding=1)


def is_plain(conv: nn.Module) -> bool:
    """Whether a convolution is nothing but its weights, with zeros around the image.

    Hooks, adapters and another `forward` (as LoRA has them) wait for it to be called.
    """
    own = "forward" in conv.__dict__ or conv._forward_hooks or conv._forward_pre_hooks
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not own


class Concatenation:
    """Maps of features that become more, and are convolved in between: those of a dense block.

    Args:
        x: the first, (N, C, H, W).
    """

    def __init__(self, x: Tensor):
        self.maps = [x]

    def append(self, x: Tensor) -> None:
        self.maps.append(x)

    def convolve(self, conv: nn.Conv2d) -> Tensor:
        """`conv(torch.cat(self.maps, 1))`, with a 3x3 convolution of stride 1 and padding 1."""
        return conv(torch.cat(self.maps, 1) if len(self.maps) > 1 else self.maps[0])


class WinogradConcatenation(Concatenation):
    """The same but for rounding, with a quarter of the products (Lavin and Gray, 2016).

    A square of 4x4 results depends on 6x6 values and 3x3 weights. Both are turned into 36 numbers,
    and the 36 products into 16 results (arXiv 1509.09308, section 4.3). In between they are added
    up over the channels, so they are 36 products of matrices (section 4.1). A map is turned once,
    and then serves every convolution of its dense block.
    """

    def __init__(self, x: Tensor):
        self.height, self.width = x.shape[2:]
        self.squares = len(x), math.ceil(self.height / SIDE), math.ceil(self.width / SIDE)
        super().__init__(self._sums(x))

    def append(self, x: Tensor) -> None:
        super().append(self._sums(x))

    def _sums(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N * squares, 36, C)."""
        _, down, across = self.squares
        below, right = SIDE * down + 1 - self.height, SIDE * across + 1 - self.width
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, right, 1, below))
        values = padded.unfold(1, REACH, SIDE).unfold(2, REACH, SIDE).permute(0, 1, 2, 4, 5, 3)
        return TO_SUMS @ values.reshape(-1, REACH**2, x.shape[1])

    def convolve(self, conv: nn.Conv2d) -> Tensor:
        weights = conv.weight.permute(2, 3, 0, 1).flatten(0, 1)  # (9, out, in)
        factors = torch.tensordot(TO_FACTORS, weights, 1).mT
        parts = factors.split([sums.shape[2] for sums in self.maps], 1)  # (36, channels, out)
        products = self.maps[0].transpose(0, 1) @ parts[0]  # (36, N * squares, out)
        for sums, part in zip(self.maps[1:], parts[1:], strict=True):
            products.baddbmm_(sums.transpose(0, 1), part)
        results = TO_RESULTS @ products.transpose(0, 1)
        if conv.bias is not None:
            results += conv.bias
        images, down, across = self.squares
        rows = results.view(*self.squares, SIDE, SIDE, -1).transpose(2, 3)  # of pixels, of squares
        image = rows.reshape(images, SIDE * down, SIDE * across, -1)
        return image[:, : self.height, : self.width].permute(0, 3, 1, 2)


def concatenation(x: Tensor, convolutions: Iterable[nn.Module]) -> Concatenation:
    """In the form whose convolutions are fastest: Winograd's on a CPU, in fp32, without gradients.

    If one of them is not plain (`is_plain`), all are called as they are.

    In bf16 its sums would be too coarse. A convolution by itself has no other to share its squares
    with: up to 64 channels, torch's own is as fast or faster.
    """
    if is_recorded() or torch.is_grad_enabled():
        return Concatenation(x)
    suits = x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[1] >= WORTH_WINOGRAD
    suits = suits and all(map(is_plain, convolutions))
    return WinogradConcatenation(x) if suits else Concatenation(x)


def in_bands(function: Callable[[Tensor], Tensor], x: Tensor, reach: int) -> Tensor:
    """`function(x)`, on a CPU and without gradients in bands of rows, each on its own.

    Intermediate features then stay in the processor's cache, and take the memory of one band.

    Args:
        function: keeps height and width, and pads at the image's borders by itself.
        x: (N, C, H, W).
        reach: how many rows above and below it a row of the result depends on.
    """
    # A recorded network has to fit images of other heights.
    if x.device.type != "cpu" or torch.is_grad_enabled() or is_recorded():
        return function(x)
    bands = []
    for top in range(0, x.shape[2], BAND):
        above = min(top, reach)
        band = function(x[:, :, top - above : top + BAND + reach])
        bands.append(band[:, :, above : above + BAND])
    return torch.cat(bands, dim=2)


def exactly(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution in its weights' own precision, under autocast too.

    The pixels at both ends of a generator need it: bf16 has 8 significant bits, which is as coarse
    as the 256 levels of an image.
    """
    with torch.autocast(x.device.type, enabled=False):
        return conv(x.to(conv.weight.dtype))


def to_autocast_dtype(x: Tensor) -> Tensor:
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
