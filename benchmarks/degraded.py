"""Generators on degraded photographs, beside bicubic of the same LR: PSNR, SSIM, NIQE.

    python benchmarks/degraded.py compact_x4_psnr compact_x4_gan --hr Set14/HR
    python benchmarks/degraded.py FILE --hr DIR --seed 1 -o results/degraded    keeps the pictures

LR is made of each HR image in three ways: clean, by MATLAB's bicubic, and by the mild and the
strong level of images/degradation.py. The image's name and the seed decide what happens to it, so
other machines and later networks are scored on the same LR, and so is train.py's validation (seed
0, and no share of another level). Means over all images are printed, in Markdown: PSNR in dB and
SSIM on Y, and with pyiqa NIQE, which is lower where a picture looks more natural; all without
`scale` pixels on each side.
"""

import argparse
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Degradation
from images.decoding import read_visible
from images.degradation import degrade_whole
from images.files import write_image
from images.kinds import NO_IMAGES, ImageError, find_images
from images.names import flat_stem
from images.resize import enlarge_nearest, imresize, whole_multiple
from images.scores import Metric, MetricError
from images.strips import labelled_strip
from training.ranks import Ranks
from training.validation import (
    Scores,
    load_niqe,
    mean_scores,
    measure_niqe,
    score,
    smallest_scored,
)
from upscaling.upscaler import Upscaler
from utils import Bar, listed
from weights import WeightsError, load_generator

SHOWN = {"none": "clean", "mild": "mild", "strong": "strong"}  # the levels of config.Degradation
SIDE = 384  # pixels around the centre that a strip shows


def main() -> None:
    arguments = parse_args()
    refuse_overwriting(arguments.hr, arguments.output)
    scale_told = 3 if arguments.scale == 3 else None  # some layouts look like x2 then
    # In fp32 every machine gives the same pixels, but for rounding.
    upscalers = {
        label: Upscaler(load_generator(path, scale=scale_told), precision="fp32")
        for label, path in labels(arguments.weights).items()
    }
    for label, upscaler in upscalers.items():
        if upscaler.scale != arguments.scale:
            raise WeightsError(f"{label} is x{upscaler.scale}, --scale is {arguments.scale}")
    niqe = load_niqe(torch.device("cpu"), Ranks())
    images = read_high_res(arguments.hr, arguments.scale)
    rows, unjudged = [], dict[str, str]()
    for level, shown in SHOWN.items():
        scores: dict[str, list[Scores]] = {label: [] for label in ("bicubic", *upscalers)}
        for name, high_res in Bar(images.items(), desc=shown, unit="image"):
            low_res = make_low_res(high_res, level, arguments.scale, name, arguments.seed)
            pictures = {"bicubic": imresize(low_res, arguments.scale)}
            pictures |= {label: upscaler(low_res) for label, upscaler in upscalers.items()}
            values = niqe_scores(pictures, arguments.scale, niqe, unjudged, f"{shown} {name}")
            for label, picture in pictures.items():
                scored = score(picture, high_res, arguments.scale)
                scores[label].append(scored | ({"niqe": values[label]} if values else {}))
            if arguments.output:
                save(arguments.output / shown, name, low_res, pictures, high_res)
        rows += [(shown, label, mean_scores(of_images)) for label, of_images in scores.items()]
    print(f"x{arguments.scale}, {len(images)} images of {arguments.hr}, seed {arguments.seed}")
    if unjudged:
        reasons = [f"{name} ({reason})" for name, reason in unjudged.items()]
        print(f"NIQE leaves out {len(unjudged)}: {listed(reasons)}")
    print(f"\n{as_markdown(rows)}")


def refuse_overwriting(high_res: Path, output: Path | None) -> None:
    """Pictures among the images that are scored would be images of the next call, or replace them.

    Raises:
        ImageError: they would be there.
    """
    if output is None:
        return
    given, kept = (high_res / "any").resolve(), (output / "any").resolve()
    levels = [(output / shown).resolve() for shown in SHOWN.values()]
    if high_res.resolve() in kept.parents or any(level in given.parents for level in levels):
        raise ImageError(f"{output} and {high_res} overlap: choose another --output")


def labels(weights: list[str]) -> dict[str, str]:
    """A label for each file or name: its stem, or where others share that, its folder's too.

    Raises:
        WeightsError: two of them are alike all the same.
    """
    stems = Counter(Path(path).stem for path in weights)
    labelled = {}
    for path in weights:
        stem, folder = Path(path).stem, Path(path).absolute().parent.name
        label = stem if stems[stem] == 1 else f"{folder}_{stem}"
        if label in (*labelled, "bicubic", "LR", "HR", "strips"):
            raise WeightsError(f"{path}: something else is called {label}; rename the file")
        labelled[label] = path
    return labelled


def read_high_res(folder: Path, scale: int) -> dict[str, np.ndarray]:
    """A folder's images by their names, less what makes no whole LR pixel.

    The names are those that train.py's validation gives them: sub_d of sub/d.png.

    Raises:
        ImageError: there is none, one cannot be read, is too small to be scored, or has another's
            name.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder")
    found = find_images(folder)
    if problems := found.others or ([] if found.images else [f"{folder} {NO_IMAGES}"]):
        raise ImageError("; ".join(problems))
    images: dict[str, np.ndarray] = {}
    for path in found.images:
        name = flat_stem(path.relative_to(folder))
        if name in images:
            raise ImageError(f"{path}: another image is called {name}, too; rename one")
        images[name] = whole_multiple(read_visible(path)[0], scale)
        if min(images[name].shape[:2]) < smallest_scored(scale):
            raise ImageError(f"{path} is too small to be scored at x{scale}")
    return images


def make_low_res(high_res: np.ndarray, level: str, scale: int, name: str, seed: int) -> np.ndarray:
    """LR of one of config.Degradation's levels, as the image's name decides."""
    if level == "none":
        return imresize(high_res, 1 / scale)
    return degrade_whole(high_res, Degradation.of_level(level), scale, name, seed)


def niqe_scores(
    pictures: dict[str, np.ndarray],
    scale: int,
    niqe: Metric | None,
    unjudged: dict[str, str],
    name: str,
) -> dict[str, float]:
    """Of each picture; nan of a network's that cannot be judged.

    Of an image whose bicubic cannot be, a blank or a small one, there is none: `unjudged` takes the
    reason, by its name.
    """
    values: dict[str, float] = {}
    for label, picture in pictures.items() if niqe else ():
        try:
            values[label] = measure_niqe(niqe, picture, scale)
        except MetricError as error:
            if label == "bicubic":
                unjudged[name] = str(error)
                return {}
            values[label] = math.nan
    return values


def as_markdown(rows: list[tuple[str, str, Scores]]) -> str:
    """A table of (LR, what enlarged it, its scores)."""
    columns = list(rows[0][2])
    lines = [f"| LR | by | {' | '.join(columns).upper()} |", "|---" * (2 + len(columns)) + "|"]
    for level, label, scores in rows:
        values = (
            f"{scores[key]:.4f}" if key == "ssim" else f"{scores[key]:.2f}" for key in columns
        )
        lines.append(f"| {level} | {label} | {' | '.join(values)} |")
    return "\n".join(lines)


def save(
    folder: Path,
    name: str,
    low_res: np.ndarray,
    pictures: dict[str, np.ndarray],
    high_res: np.ndarray,
) -> None:
    """LR, each result, and a strip of all of them beside HR; a folder for each kind."""
    nearest = enlarge_nearest(low_res, high_res.shape[0] // low_res.shape[0])
    strip = labelled_strip({"LR, nearest": nearest} | pictures | {"HR": high_res}, SIDE)
    for kind, picture in ({"LR": low_res, "strips": strip} | pictures).items():
        path = folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(picture, path)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="+", metavar="WEIGHTS", help="generators: files or names")
    parser.add_argument("--hr", type=Path, required=True, metavar="DIR", help="true images")
    parser.add_argument("--scale", type=int, default=4, help="the generators'")
    parser.add_argument("--seed", type=int, default=0, help="another one degrades differently")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="keep LR, results and strips here"
    )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except (ImageError, MetricError, WeightsError) as error:
        sys.exit(f"degraded.py: {error}")
