"""The README's picture: crops at true size, upscaled by bicubic and by the GAN in the box.

    python benchmarks/crops.py [--weights FILE] [-o docs/crops.jpg]

Three photographs that scikit-image ships, and that the networks in the box were not trained on, are
shrunk to a quarter by MATLAB's bicubic and upscaled again. One pixel of a result is one pixel of
the picture: nothing is scaled to fit. It takes some seconds.
"""

import argparse
import sys
from importlib import resources
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from images.files import read_image, write_image
from images.resize import imresize
from images.strips import labelled_strip
from upscaling.upscaler import Upscaler
from weights import load_generator

ROOT = Path(__file__).resolve().parents[1]
CROPS = {  # photograph -> left and top of its crop: fur, wood, fabric
    "chelsea.png": (80, 58),
    "coffee.png": (0, 185),
    "astronaut.png": (90, 262),
}
WIDTH, HEIGHT, GAP = 274, 190, 4  # three columns are 830 pixels, which web pages show as they are


def main() -> None:
    arguments = parse_args()
    # In fp32 every machine gives the same pixels, but for rounding.
    upscaler = Upscaler(load_generator(arguments.weights), precision="fp32")
    columns = {f"bicubic x{upscaler.scale}": [], f"ours x{upscaler.scale}": [], "original": []}
    for name, (left, top) in CROPS.items():
        with resources.as_file(resources.files("skimage") / "data" / name) as path:
            high_res = whole_multiple(read_image(path), upscaler.scale)
        low_res = imresize(high_res, 1 / upscaler.scale)
        pictures = (upscaler.bicubic(low_res), upscaler(low_res), high_res)
        for column, picture in zip(columns.values(), pictures, strict=True):
            column.append(picture[top : top + HEIGHT, left : left + WIDTH])
    stacked = {label: stack(crops) for label, crops in columns.items()}
    strip = labelled_strip(stacked, side=len(CROPS) * (HEIGHT + GAP))
    write_image(strip, arguments.output)
    size = arguments.output.stat().st_size / 1e3
    print(f"{strip.shape[1]}x{strip.shape[0]} pixels, {size:.0f} KB: {arguments.output}")


def whole_multiple(image: np.ndarray, scale: int) -> np.ndarray:
    """The image less the pixels at the right and the bottom that make no whole LR pixel."""
    height, width = (side // scale * scale for side in image.shape[:2])
    return image[:height, :width]


def stack(crops: list[np.ndarray]) -> np.ndarray:
    """One below the other, with white in between."""
    white = np.full((GAP, WIDTH, 3), 255, np.uint8)
    parts = [part for crop in crops for part in (white, crop)]
    return np.concatenate(parts[1:])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    in_the_box = ROOT / "checkpoints" / "compact_x4_gan.safetensors"
    parser.add_argument("--weights", default=in_the_box, metavar="FILE|NAME", help="a generator")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "crops.jpg")
    return parser.parse_args()


if __name__ == "__main__":
    main()
