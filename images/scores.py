"""How good results are: PSNR and SSIM as the papers compute them, metrics of pyiqa, tables."""

import csv
import importlib
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from images.bands import bands
from images.resize import imresize
from images.tensors import to_tensor
from utils import printable, replacing

Metric = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]

SSIM_WINDOW = 11  # pixels each way
NIQE_BLOCK = 96  # pixels each way; there have to be two blocks


def psnr(a: np.ndarray, b: np.ndarray, crop_border: int, y_channel: bool = True) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images.

    Args:
        a, b: uint8, (H, W, 3).
        crop_border: pixels left out on each side; papers take the scale.
        y_channel: compare BT.601 luma in [16, 235], as papers do, or all of RGB.
    """
    a, b = _inside(a, b, crop_border)
    squares = count = 0.0
    for band in bands(len(a), a[0].size):
        for x, y in _planes(a[band], b[band], y_channel):
            squares += np.square(x - y).sum()
            count += x.size
    return math.inf if squares == 0 else float(10 * np.log10(255**2 / (squares / count)))


def ssim(a: np.ndarray, b: np.ndarray, crop_border: int, y_channel: bool = True) -> float:
    """Structural similarity (Wang et al., 2004) as in the authors' MATLAB code.

    11x11 Gaussian window of sigma 1.5, only where it fits whole; the mean over pixels (and over
    channels, for RGB). Arguments as in `psnr`.

    Raises:
        ValueError: an image that is smaller than the window once the border is off.
    """
    a, b = _inside(a, b, crop_border)
    height, width = a.shape[:2]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs {SSIM_WINDOW} pixels each way; {width}x{height} are left")
    total = count = 0.0
    margin = SSIM_WINDOW - 1  # rows that neighbouring bands share
    for band in bands(height - margin, width, least=3 * SSIM_WINDOW):
        lines = slice(band.start, band.stop + margin)
        for x, y in _planes(a[lines], b[lines], y_channel):
            similarity = _similarity(x, y)
            total += similarity.sum()
            count += similarity.size
    return float(total / count)


def _similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The map that SSIM is the mean of: float64, (H - 10, W - 10) of (H, W)."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _gaussian(a), _gaussian(b)
    var_a = _gaussian(a * a) - mean_a**2
    var_b = _gaussian(b * b) - mean_b**2
    covariance = _gaussian(a * b) - mean_a * mean_b
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return structure * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)


def _inside(a: np.ndarray, b: np.ndarray, crop_border: int) -> tuple[np.ndarray, np.ndarray]:
    """Both without their border."""
    if a.shape != b.shape:
        raise ValueError(f"images of different shapes cannot be compared: {a.shape}, {b.shape}")
    inside = slice(crop_border, -crop_border or None)
    a, b = a[inside, inside], b[inside, inside]
    if a.size == 0:
        raise ValueError(f"nothing is left once {crop_border} pixels are cropped from each side")
    return a, b


def _planes(
    a: np.ndarray, b: np.ndarray, y_channel: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What is compared with what: luma, or one channel after the other; float64, (H, W)."""
    if y_channel:
        yield _luma(a), _luma(b)
    else:
        for channel in range(a.shape[2]):
            yield a[..., channel].astype(np.float64), b[..., channel].astype(np.float64)


def _luma(rgb: np.ndarray) -> np.ndarray:
    """Y of BT.601 in [16, 235], as MATLAB's rgb2ycbcr computes it, not rounded."""
    return 16 + rgb @ np.array([65.481, 128.553, 24.966]) / 255


def _gaussian(image: np.ndarray) -> np.ndarray:
    """Filter both axes with an 11-tap Gaussian of sigma 1.5; 10 pixels are lost each way."""
    kernel = cv2.getGaussianKernel(11, 1.5)
    return cv2.sepFilter2D(image, -1, kernel, kernel)[5:-5, 5:-5]


# ------------------------------------------------------------------------- metrics of pyiqa, tables


class MetricError(ValueError):
    """A metric that cannot be computed, with the remedy."""


def load_metrics(names: list[str], device: torch.device, has_reference: bool) -> dict[str, Metric]:
    """Metrics of pyiqa by name: "lpips", "dists" and others with a reference, "niqe" and such.

    Raises:
        MetricError: pyiqa is not there, does not know a name, or cannot fetch its weights; or a
            metric needs a reference and there is none.
    """
    if not names:
        return {}
    try:
        pyiqa = importlib.import_module("pyiqa")  # large, and not needed to upscale
    except Exception as error:  # of any kind: it imports dozens of packages
        raise MetricError(
            f"pyiqa, which computes {', '.join(names)}, cannot be imported ({brief(error)}): "
            "pip install pyiqa"
        ) from error
    # Some compute in fp64, which MPS does not have.
    place = torch.device("cpu") if device.type == "mps" else device
    metrics = {}
    for name in names:
        if name not in pyiqa.list_models():
            known = ", ".join(pyiqa.list_models())
            raise MetricError(f"pyiqa has no metric {name!r}; it has: {known}")
        try:
            metrics[name] = pyiqa.create_metric(name, device=place)
        except Exception as error:  # of any kind: a hundred networks of many authors
            raise MetricError(
                f"pyiqa cannot load {name} ({brief(error)}); it downloads weights on first use"
            ) from error
        if metrics[name].metric_mode == "FR" and not has_reference:
            raise MetricError(f"{name} compares with the true image: add --hr DIR")
    return metrics


def rate(
    low_res: np.ndarray, pictures: dict[str, np.ndarray], scale: float, metrics: dict[str, Metric]
) -> dict[str, float]:
    """Score our result and bicubic's, without the border that the protocol leaves out.

    Args:
        low_res: (H, W, 3), uint8.
        pictures: "ours", "bicubic" and perhaps "HR", uint8, of one size.
        scale: their size over that of `low_res`.
        metrics: as `load_metrics` gives them.

    Returns:
        With "HR", PSNR in dB and SSIM on Y and RGB, and lr_psnr: how far ours, shrunk again, is
        from its input (colour shift; dB on RGB). Then each metric. Bicubic's names say so.

    Raises:
        MetricError: a metric cannot judge this image.
    """
    border, score = math.ceil(scale), {}
    for prefix, picture in (("", pictures["ours"]), ("bicubic_", pictures["bicubic"])):
        if "HR" in pictures:
            for suffix, luma in (("_y", True), ("_rgb", False)):
                score[f"{prefix}psnr{suffix}"] = psnr(picture, pictures["HR"], border, luma)
                score[f"{prefix}ssim{suffix}"] = ssim(picture, pictures["HR"], border, luma)
        for name, metric in metrics.items():
            score[prefix + name] = measure(name, metric, picture, border, pictures.get("HR"))
    if "HR" in pictures:
        shrunk = imresize(pictures["ours"], 1 / scale)[: low_res.shape[0], : low_res.shape[1]]
        score["lr_psnr"] = psnr(shrunk, low_res, 0, y_channel=False)
    return score


def measure(
    name: str,
    metric: Metric,
    picture: np.ndarray,
    border: int,
    reference: np.ndarray | None = None,
) -> float:
    """What a metric says of a picture.

    Args:
        name: of the metric, for messages.
        picture, reference: uint8, (H, W, 3); only some metrics compare with a reference.
        border: pixels left out on each side, at least 1.

    Raises:
        MetricError: the metric cannot judge this picture.
    """
    true = None if reference is None else _without_border(reference, border)
    try:
        return float(metric(_without_border(picture, border), true))
    except Exception as error:  # as in load_metrics
        raise MetricError(f"metric {name}: {brief(error)}") from error


def is_for_niqe(picture: np.ndarray, border: int) -> bool:
    """Whether it is large enough without its border: NIQE compares blocks."""
    rows, columns = ((side - 2 * border) // NIQE_BLOCK for side in picture.shape[:2])
    return rows * columns >= 2


def brief(error: Exception) -> str:
    """Its kind and the first line of what it says."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _without_border(picture: np.ndarray, border: int) -> torch.Tensor:
    return to_tensor(picture[border:-border, border:-border])


def with_mean(scores: list[dict]) -> list[dict]:
    """The scores in order, with a last row of means."""
    scores = sorted(scores, key=lambda row: row["image"])
    columns = [column for column in scores[0] if column != "image"]
    mean = {column: float(np.mean([row[column] for row in scores])) for column in columns}
    return [*scores, {"image": "mean"} | mean]


def save_table(table: list[dict], path: Path) -> None:
    """Write rows of scores with all digits."""
    # A name's bytes may be no UTF-8: those are escaped.
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    with replacing(path) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))


def as_text(table: list[dict]) -> str:
    """The table for a terminal: ours beside bicubic's, and what both were measured against."""
    columns = [["image", *(printable(row["image"]) for row in table)]]
    for space in ("y", "rgb") if "psnr_y" in table[0] else ():
        for who, prefix in (("ours", ""), ("bicubic", "bicubic_")):
            psnr_name, ssim_name = f"{prefix}psnr_{space}", f"{prefix}ssim_{space}"
            values = [f"{row[psnr_name]:.2f} / {row[ssim_name]:.4f}" for row in table]
            columns.append([f"{who}, {space.upper()}", *values])
    for name in table[0]:
        if f"bicubic_{name}" in table[0] and not name.startswith(("psnr_", "ssim_")):
            for who, key in (("ours", name), ("bicubic", f"bicubic_{name}")):
                columns.append([f"{who}, {name}", *(f"{row[key]:.4f}" for row in table)])
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for image, *values in zip(*columns, strict=True):
        aligned = [f"{value:>{width}}" for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([f"{image:{widths[0]}}", *aligned]))
    return "\n".join(lines)
