"""Pictures for the documents: crops at true size, upscaled by bicubic and by a generator.

    python benchmarks/crops.py [--weights WEIGHTS]                  docs/crops.jpg
    python benchmarks/crops.py PHOTO:LEFT,TOP ... --weights compact_x4_real [--beside WEIGHTS]
                                                                    docs/real.jpg

The first shrinks three photographs that scikit-image ships, and that the networks in the box were
not trained on, to a quarter by MATLAB's bicubic, and upscales them again. The second upscales
photographs as they are, from the pixel at LEFT,TOP on, also by another generator. Those of
docs/real.jpg are inputs of xinntao/Real-ESRGAN (BSD-3-Clause), whose name belongs under it:
0014.jpg:58,52, 0030.jpg:44,28 and OST_009.png:215,205.
One pixel of a result is one pixel of the picture: nothing is scaled to fit.
"""

import argparse
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from images.files import read_image, write_image
from images.kinds import ImageError
from images.resize import imresize, whole_multiple
from images.strips import labelled_strip
from upscaling.upscaler import Upscaler
from weights import WeightsError, load_generator

ROOT = Path(__file__).resolve().parents[1]
CROPS = {  # photograph -> left and top of its crop: fur, wood, fabric
    "chelsea.png": (80, 58),
    "coffee.png": (0, 185),
    "astronaut.png": (90, 262),
}
WIDTH, HEIGHT, GAP = 274, 190, 4  # three columns are 830 pixels, which web pages show as they are
MARGIN = 24  # LR pixels around a crop: large networks take minutes for a whole photograph

Columns = dict[str, list[np.ndarray]]  # label -> crops, from top to bottom
Enlarge = Callable[[np.ndarray], np.ndarray]


class Place(NamedTuple):
    """A crop of a photograph: `left` and `top` count the photograph's own pixels."""

    photograph: Path
    left: int
    top: int


def main() -> None:
    arguments = parse_args()
    # In fp32 every machine gives the same pixels, but for rounding.
    ours = Upscaler(load_generator(arguments.weights), precision="fp32")
    if arguments.places:
        net = load_generator(arguments.beside)
        theirs = Upscaler(net, precision="fp32", scale=ours.scale)
        columns = of_photographs(arguments.places, ours, theirs, Path(arguments.beside).stem)
    else:
        columns = of_shrunk_photographs(ours)
    stacked = {label: stack(crops) for label, crops in columns.items()}
    strip = labelled_strip(stacked, side=max(WIDTH, *(len(each) for each in stacked.values())))
    write_image(strip, arguments.output)
    size = arguments.output.stat().st_size / 1e3
    print(f"{strip.shape[1]}x{strip.shape[0]} pixels, {size:.0f} KB: {arguments.output}")


def of_shrunk_photographs(ours: Upscaler) -> Columns:
    """Beside their originals."""
    columns: Columns = {f"bicubic x{ours.scale}": [], f"ours x{ours.scale}": [], "original": []}
    for name, (left, top) in CROPS.items():
        with resources.as_file(resources.files("skimage") / "data" / name) as path:
            high_res = whole_multiple(read_image(path), ours.scale)
        low_res = imresize(high_res, 1 / ours.scale)
        pictures = (ours.bicubic(low_res), ours(low_res), high_res)
        for column, picture in zip(columns.values(), pictures, strict=True):
            column.append(picture[top : top + HEIGHT, left : left + WIDTH])
    return columns


def of_photographs(places: list[Place], ours: Upscaler, theirs: Upscaler, name: str) -> Columns:
    """Beside what another generator, whose name is given, makes of them."""
    times = parameters(theirs) / parameters(ours)
    columns: Columns = {"bicubic": [], "ours": [], f"{name} ({times:.0f} times the size)": []}
    for crop in places:
        for column, enlarge in zip(columns.values(), (ours.bicubic, ours, theirs), strict=True):
            column.append(enlarged_crop(crop, enlarge, ours.scale))
    return columns


def parameters(upscaler: Upscaler) -> int:
    return sum(parameter.numel() for parameter in upscaler.net.parameters())


def enlarged_crop(crop: Place, enlarge: Enlarge, scale: int) -> np.ndarray:
    """A crop of the enlarged photograph, of which little more than that is computed.

    Raises:
        ImageError: the photograph cannot be read, or has less than a crop there.
    """
    photograph, left, top = crop
    picture = read_image(photograph)
    height, width = (scale * side for side in picture.shape[:2])
    x, y = scale * left, scale * top
    if min(left, top) < 0 or x + WIDTH > width or y + HEIGHT > height:
        raise ImageError(f"{photograph}: {WIDTH}x{HEIGHT} from {x},{y} on leave {width}x{height}")
    right, bottom = left + -(-WIDTH // scale), top + -(-HEIGHT // scale)
    first_x, first_y = max(0, left - MARGIN), max(0, top - MARGIN)
    enlarged = enlarge(picture[first_y : bottom + MARGIN, first_x : right + MARGIN])
    x, y = x - scale * first_x, y - scale * first_y
    return enlarged[y : y + HEIGHT, x : x + WIDTH]


def stack(crops: list[np.ndarray]) -> np.ndarray:
    """One below the other, with white in between."""
    white = np.full((GAP, WIDTH, 3), 255, np.uint8)
    parts = [part for crop in crops for part in (white, crop)]
    return np.concatenate(parts[1:])


def place(text: str) -> Place:
    """Of "photo.jpg:LEFT,TOP"."""
    photograph, _, corner = text.rpartition(":")
    left, top = map(int, corner.split(","))
    return Place(Path(photograph), left, top)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "places", nargs="*", type=place, metavar="PHOTO:LEFT,TOP", help="crops of photographs"
    )
    parser.add_argument("--weights", default="compact_x4_gan", help="ours: a file or a name")
    parser.add_argument(
        "--beside", default="RealESRGAN_x4plus", metavar="WEIGHTS", help="the others of PHOTOs"
    )
    parser.add_argument("-o", "--output", type=Path, help="default: crops.jpg or real.jpg in docs/")
    arguments = parser.parse_args()
    name = "real.jpg" if arguments.places else "crops.jpg"
    arguments.output = arguments.output or ROOT / "docs" / name
    return arguments


if __name__ == "__main__":
    try:
        main()
    except (ImageError, WeightsError) as error:
        sys.exit(f"crops.py: {error}")
