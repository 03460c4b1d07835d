"""Pixels in, pixels out: MATLAB's resize, PSNR and SSIM, tiled upscaling, labelled strips.

An image is a uint8 or uint16 array, (H, W, 3) in RGB, unless a docstring says otherwise.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from tqdm import tqdm

# -------------------------------------------------------------------------------- MATLAB's resize


def imresize(image: np.ndarray, scale: float) -> np.ndarray:
    """MATLAB's `imresize(image, scale, 'bicubic')`, bit for bit.

    Antialiased when shrinking, borders reflected, float64, rows before columns. MATLAB rounds
    after each of the two; ports that round once at the end differ in a tenth of the pixels.

    Args:
        image: uint8 or uint16, (H, W) or (H, W, C).
        scale: above 0.

    Returns:
        The same dtype, (ceil(H * scale), ceil(W * scale)) and channels as given.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"imresize works on uint8 and uint16 images, not on {image.dtype}")
    top = np.iinfo(image.dtype).max
    for axis in (0, 1):
        weights, indices = _contributions(image.shape[axis], scale)
        source = image.swapaxes(0, axis)
        result = np.zeros((len(weights), *source.shape[1:]))
        for tap in range(weights.shape[1]):
            weight = weights[:, tap].reshape(-1, *[1] * (source.ndim - 1))
            result += weight * source[indices[:, tap]]
        image = np.floor(np.clip(result, 0, top) + 0.5).astype(image.dtype).swapaxes(0, axis)
    return np.ascontiguousarray(image)


def _contributions(length: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Which input pixels make each output pixel, and how much each counts: (output, taps) twice."""
    stretch = min(scale, 1.0)  # below 1 the kernel widens: that is the antialiasing
    taps = math.ceil(4 / stretch) + 2
    # Centres of the output pixels in input coordinates, both counted from 1 as in MATLAB.
    centre = np.arange(1, math.ceil(length * scale) + 1) / scale + 0.5 * (1 - 1 / scale)
    first = np.floor(centre - 2 / stretch)
    position = first[:, None] + np.arange(taps)
    weights = stretch * _cubic(stretch * (centre[:, None] - position))
    weights /= weights.sum(axis=1, keepdims=True)
    mirror = np.concatenate((np.arange(length), np.arange(length)[::-1]))
    indices = mirror[(position.astype(np.int64) - 1) % len(mirror)]
    used = weights.any(axis=0)
    return weights[:, used], indices[:, used]


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel, a = -0.5 (IEEE ASSP 29, 1981, equation 15)."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


# ---------------------------------------------------------------------------------- PSNR and SSIM


def psnr(a: np.ndarray, b: np.ndarray, crop_border: int, y_channel: bool = True) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images.

    Args:
        a, b: uint8, (H, W, 3).
        crop_border: pixels left out on each side; papers take the scale.
        y_channel: compare BT.601 luma in [16, 235], as papers do, or all of RGB.
    """
    a, b = _comparable(a, b, crop_border, y_channel)
    error = np.mean((a - b) ** 2)
    return math.inf if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(a: np.ndarray, b: np.ndarray, crop_border: int, y_channel: bool = True) -> float:
    """Structural similarity (Wang et al., 2004) as in the authors' MATLAB code.

    11x11 Gaussian window of sigma 1.5, only where it fits whole; the mean over pixels (and over
    channels, for RGB). Arguments as in `psnr`.

    Raises:
        ValueError: an image that is smaller than the window once the border is off.
    """
    a, b = _comparable(a, b, crop_border, y_channel)
    if min(a.shape[:2]) < 11:
        raise ValueError(f"SSIM needs 11 pixels each way; {a.shape[1]}x{a.shape[0]} are left")
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _gaussian(a), _gaussian(b)
    var_a = _gaussian(a * a) - mean_a**2
    var_b = _gaussian(b * b) - mean_b**2
    covariance = _gaussian(a * b) - mean_a * mean_b
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return float(np.mean(structure * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)))


def _comparable(
    a: np.ndarray, b: np.ndarray, crop_border: int, y_channel: bool
) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape:
        raise ValueError(f"images of different shapes cannot be compared: {a.shape}, {b.shape}")
    inside = slice(crop_border, -crop_border or None)
    a, b = (image[inside, inside].astype(np.float64) for image in (a, b))
    if a.size == 0:
        raise ValueError(f"nothing is left once {crop_border} pixels are cropped from each side")
    return (_luma(a), _luma(b)) if y_channel else (a, b)


def _luma(rgb: np.ndarray) -> np.ndarray:
    """Y of BT.601 in [16, 235], as MATLAB's rgb2ycbcr computes it, not rounded."""
    return 16 + rgb @ np.array([65.481, 128.553, 24.966]) / 255


def _gaussian(image: np.ndarray) -> np.ndarray:
    """Filter both axes with an 11-tap Gaussian of sigma 1.5; 10 pixels are lost each way."""
    kernel = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        length = image.shape[axis] - 10
        image = sum(
            weight * image.take(range(i, i + length), axis) for i, weight in enumerate(kernel)
        )
    return image


# ------------------------------------------------------------------------------- tiled upscaling


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) to (1, 3, H, W) fp32 in [0, 1]."""
    planes = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    return planes / np.iinfo(image.dtype).max


def to_image(tensor: Tensor, dtype: np.dtype | type = np.uint8) -> np.ndarray:
    """(3, H, W) in [0, 1], clamped and rounded, to (H, W, 3) uint8 or uint16."""
    top = np.iinfo(dtype).max
    levels = (tensor.float() * top).round().clamp(0, top)
    return levels.permute(1, 2, 0).cpu().numpy().astype(dtype)


class PerChannel(nn.Module):
    """A network for grayscale images, which is given each colour as one."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.scale = net.scale

    def forward(self, low_res: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3, scale * H, scale * W)."""
        return self.net(low_res.flatten(0, 1)[:, None]).unflatten(0, low_res.shape[:2])[:, :, 0]


class Ensemble(nn.Module):
    """The mean of what a network makes of the 8 flips and rotations (Timofte et al., 2016)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.scale = net.scale

    def forward(self, low_res: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3, scale * H, scale * W)."""
        total = 0
        for quarters in range(4):
            turned = low_res.rot90(quarters, (2, 3))
            both = self.net(turned) + self.net(turned.flip(3)).flip(3)
            total = total + both.rot90(-quarters, (2, 3))
        return total / 8


@torch.inference_mode()
def upscale(
    net: nn.Module, image: np.ndarray, tile: int = 0, overlap: int = 32, batch: int = 1
) -> np.ndarray:
    """Run a generator over an image, whole or in overlapping tiles that are blended.

    Only one row of tiles is held in floating point, on the CPU; the device holds `batch` tiles.

    Args:
        net: (N, 3, h, w) in [0, 1] to (N, 3, scale * h, scale * w), with `.scale`, in eval mode.
        image: (H, W, 3).
        tile: largest side of the tiles in input pixels; 0, or one that the image fits in: none.
        overlap: input pixels that neighbours share at least, below `tile`.
        batch: tiles that the network is given at once.

    Returns:
        The same dtype, (scale * H, scale * W, 3).

    Raises:
        FloatingPointError: the network's output is not finite.
    """
    scale = net.scale
    height, width = image.shape[:2]
    rows, columns = _spans(height, tile, overlap), _spans(width, tile, overlap)
    if len(rows) == len(columns) == 1:
        return to_image(_run(net, [image])[0], image.dtype)

    row_weights = _blend_weights(rows, height, overlap, scale)
    column_weights = _blend_weights(columns, width, overlap, scale)
    output = np.empty((height * scale, width * scale, 3), image.dtype)
    unfinished = torch.zeros(3, 0, width * scale)  # rows that the next row of tiles adds to
    with tqdm(total=len(rows) * len(columns), desc="tiles", leave=False) as bar:
        for row, (top, bottom) in enumerate(rows):
            band = torch.zeros(3, (bottom - top) * scale, width * scale)
            for first in range(0, len(columns), batch):
                spans = columns[first : first + batch]
                results = _run(net, [image[top:bottom, left:right] for left, right in spans])
                for i, (left, right) in enumerate(spans):
                    weights = column_weights[first + i]
                    band[:, :, left * scale : right * scale] += results[i] * weights
                bar.update(len(spans))
            band *= row_weights[row][:, None]
            band[:, : unfinished.shape[1]] += unfinished
            end = rows[row + 1][0] if row + 1 < len(rows) else height
            finished = (end - top) * scale
            output[top * scale : end * scale] = to_image(band[:, :finished], image.dtype)
            unfinished = band[:, finished:]
    return output


def _run(net: nn.Module, tiles: list[np.ndarray]) -> Tensor:
    """Tiles of one size through the network: (N, 3, scale * h, scale * w), fp32 on the CPU."""
    device = next(net.parameters()).device
    results = net(torch.cat([to_tensor(tile) for tile in tiles]).to(device)).float().cpu()
    if not results.isfinite().all():
        raise FloatingPointError("the network's output is not finite")
    return results


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Where tiles of one size, at most `tile`, begin and end to cover [0, length) evenly."""
    if tile == 0 or length <= tile:
        return [(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    # No larger than so many have to be: for 512 pixels each way, tiles of 192 instead of 256
    # are 44% less work.
    tile = math.ceil((length + (count - 1) * overlap) / count)
    starts = np.linspace(0, length - tile, count).round().astype(int).tolist()
    return [(start, start + tile) for start in starts]


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
        # What lies nearest to a tile's edge saw the most of its zero padding: it hardly counts.
        ramp = torch.minimum(from_start, from_end) - overlap * scale / 4
        ramp = ramp.clamp(1e-3, overlap * scale / 2)
        total[start * scale : end * scale] += ramp
        ramps.append(ramp)
    return [
        ramp / total[start * scale : end * scale]
        for ramp, (start, end) in zip(ramps, spans, strict=True)
    ]


# ------------------------------------------------------------------------------- labelled strips


def labelled_strip(pictures: dict[str, np.ndarray], side: int) -> np.ndarray:
    """Pictures of one size side by side, each under its label.

    Of larger pictures, the `side` x `side` pixels around the centre.
    """
    font = ImageFont.load_default(size=14)
    gap, bar = 4, 22
    cropped = {label: _centre(picture, side) for label, picture in pictures.items()}
    height, width = next(iter(cropped.values())).shape[:2]
    cell = max(width, *(math.ceil(font.getlength(label)) for label in pictures))
    strip = Image.new("RGB", ((cell + gap) * len(pictures) - gap, height + bar), "white")
    draw = ImageDraw.Draw(strip)
    for i, (label, picture) in enumerate(cropped.items()):
        left = i * (cell + gap)
        draw.text((left + cell / 2, bar / 2), label, fill="black", font=font, anchor="mm")
        strip.paste(Image.fromarray(picture), (left + (cell - width) // 2, bar))
    return np.array(strip)


def _centre(picture: np.ndarray, side: int) -> np.ndarray:
    top, left = (max(0, (length - side) // 2) for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def enlarge_nearest(image: np.ndarray, scale: int) -> np.ndarray:
    """Each pixel as a block of scale x scale: what a network is given, at the size it answers."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)
