"""Convolutions in the form that a CPU computes fastest, and in the precision that pixels need.

They give what torch's own layers give, but for rounding; how much faster they are is measured in
benchmarks/README.md.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BAND = 96  # rows that `in_bands` takes at once


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
        if wants_standard_layers(x):
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
    if wants_standard_layers(x):
        return conv(F.interpolate(x, scale_factor=factor, mode="nearest"))
    kernel = F.pad(conv.weight.flip(2, 3).transpose(0, 1), [factor - 1] * 4)
    kernel = F.avg_pool2d(kernel, factor, stride=1, divisor_override=1)  # sums, factor + 2 a side
    return F.conv_transpose2d(x, kernel, conv.bias, stride=factor, padding=1)


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
