"""A network over an image of any size: whole, or in tiles that overlap and are blended."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from images.tensors import to_image, to_tensor
from upscaling.arguments import OVERLAP
from utils import Bar

# An nn.Module with `.scale`: RGB in [0, 1], (N, 3, H, W) to (N, 3, scale * H, scale * W). If it
# folds squares of pixels into channels, their side is its `.unshuffle`.
Network: TypeAlias = Any


@torch.inference_mode()
def upscale(
    net: Network,
    image: np.ndarray,
    tile: int = 0,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Run a generator over an image, whole or in overlapping tiles that are blended.

    One row of tiles is held in floating point, on the CPU, and what the next one shares with it;
    the device holds `batch` tiles.

    Args:
        net: in eval mode.
        image: (H, W, 3).
        tile: largest side of the tiles in input pixels, twice `OVERLAP` at least; 0, or one that
            the image fits in: none.
        batch: tiles that the network is given at once.
        progress: called before the network is, with how many tiles are done and how many there are.

    Returns:
        The same dtype, (scale * H, scale * W, 3).

    Raises:
        FloatingPointError: the network's output is not finite.
    """
    scale = net.scale
    height, width = image.shape[:2]
    unit = getattr(net, "unshuffle", 1)
    rows, columns = _spans(height, tile, OVERLAP, unit), _spans(width, tile, OVERLAP, unit)
    tell = progress or (lambda done, total: None)
    if len(rows) == len(columns) == 1:
        tell(0, 1)
        return to_image(_run(net, [image])[0], image.dtype)

    row_weights = _blend_weights(rows, height, OVERLAP, scale)
    column_weights = _blend_weights(columns, width, OVERLAP, scale)
    output = np.empty((height * scale, width * scale, 3), image.dtype)
    unfinished = torch.zeros(3, 0, width * scale)  # rows that the next row of tiles adds to
    with Bar(total=len(rows) * len(columns), desc="tiles", leave=False) as bar:
        for row, (top, bottom) in enumerate(rows):
            band = torch.zeros(3, (bottom - top) * scale, width * scale)
            for first in range(0, len(columns), batch):
                spans = columns[first : first + batch]
                tell(row * len(columns) + first, len(rows) * len(columns))
                results = _run(net, [image[top:bottom, left:right] for left, right in spans])
                _add_tiles(band, results, spans, column_weights[first:], scale)
                bar.update(len(spans))
            band *= row_weights[row][:, None]
            band[:, : unfinished.shape[1]] += unfinished
            end = rows[row + 1][0] if row + 1 < len(rows) else height
            finished = (end - top) * scale
            output[top * scale : end * scale] = to_image(band[:, :finished], image.dtype)
            unfinished = band[:, finished:].clone()
            del band  # before the next one is made
    return output


@torch.inference_mode()
def upscale_together(
    net: Network,
    images: Sequence[np.ndarray],
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """`upscale` of each, all at once; they are of one size and dtype, and small."""
    if progress:
        progress(0, 1)
    return [to_image(result, images[0].dtype) for result in _run(net, images)]


def _add_tiles(
    band: Tensor, tiles: Tensor, spans: list[tuple[int, int]], weights: list[Tensor], scale: int
) -> None:
    """Add tiles (N, 3, h, w) of one row to it, (3, h, W), each weighted over its columns."""
    for tile, (left, right), weight in zip(tiles, spans, weights, strict=False):
        band[:, :, left * scale : right * scale] += tile * weight


def _run(net: Network, tiles: Sequence[np.ndarray]) -> Tensor:
    """Tiles of one size through the network: (N, 3, scale * h, scale * w), fp32 on the CPU."""
    device = next(net.parameters()).device
    results = net(torch.cat([to_tensor(tile) for tile in tiles]).to(device)).float().cpu()
    if not results.isfinite().all():
        raise FloatingPointError("the network's output is not finite")
    return results


def _spans(length: int, tile: int, overlap: int, unit: int = 1) -> list[tuple[int, int]]:
    """Where tiles of one size, at most `tile`, begin and end to cover [0, length) evenly.

    As many pixels lie before each, and behind each, as fill squares of `unit`: a network that folds
    them folds the same ones as in the whole image, and in its flips.
    """
    if tile == 0 or length <= tile:
        return [(0, length)]
    tile -= (tile - length) % unit
    overlap += (length - overlap) % unit
    count = math.ceil((length - overlap) / (tile - overlap))
    # No larger than that number needs: for 512 pixels each way, tiles of 192 instead of 256 are
    # 44% less work.
    tile = math.ceil((length + (count - 1) * overlap) / count)
    tile += (length - tile) % unit
    starts = np.linspace(0, (length - tile) // unit, count).round().astype(int) * unit
    return [(start, start + tile) for start in starts.tolist()]


def _blend_weights(
    spans: list[tuple[int, int]], length: int, overlap: int, scale: int
) -> list[Tensor]:
    """Per tile and output pixel, ramps that add up to 1; the image's own border is no tile edge."""
    total = torch.zeros(length * scale)
    ramps = []
    for start, end in spans:
        distance = torch.arange((end - start) * scale) + 0.5
        from_start = distance if start > 0 else torch.full_like(distance, math.inf)
        from_end = distance.flip(0) if end < length else torch.full_like(distance, math.inf)
        # Pixels at a tile's edge saw the most of its zero padding, so they hardly count.
        ramp = torch.minimum(from_start, from_end) - overlap * scale / 4
        ramp = ramp.clamp(1e-3, overlap * scale / 2)
        total[start * scale : end * scale] += ramp
        ramps.append(ramp)
    return [
        ramp / total[start * scale : end * scale]
        for ramp, (start, end) in zip(ramps, spans, strict=True)
    ]
