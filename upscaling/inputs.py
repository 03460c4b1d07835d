"""What is upscaled, where results go, and which HR image belongs to an LR image by its name."""

import os
import re
from pathlib import Path

import numpy as np

from images.files import ImageError, find_images, read_image


class UsageError(ValueError):
    """A command line that cannot be carried out; no image has been written."""


def find_inputs(source: Path, output: Path) -> tuple[list[Path], Path]:
    """The images that `source` names, and the folder that their results' names are relative to.

    Args:
        source: an image, or a folder that is searched in depth.
        output: where results go; those of an earlier call inside `source` are no input.

    Raises:
        UsageError: there is none.
    """
    # Path's own questions raise an error for a name that is too long.
    if os.path.isfile(source):
        return [source], source.parent
    if not os.path.isdir(source):
        raise UsageError(f"{source}: no such file or folder")
    results = output.resolve() if output.resolve() != source.resolve() else None
    paths = [path for path in find_images(source) if results not in path.resolve().parents]
    if not paths:
        raise UsageError(f"{source} holds no PNG, JPEG, WebP, BMP, TIFF or GIF image, at any depth")
    return paths, source


def make_output(folder: Path) -> None:
    """Make the folder for results.

    Raises:
        UsageError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the output folder {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"the output folder {folder} is not writable; choose another with -o")


def partners_in(hr: Path) -> dict[Path, list[Path]]:
    """The HR images by their place in `hr` and their plain name.

    Raises:
        UsageError: no such folder.
    """
    if os.path.isfile(hr):
        raise UsageError(f"--hr {hr} is a file; name the folder that it is in")
    if not os.path.isdir(hr):
        raise UsageError(f"--hr {hr}: no such folder")
    found: dict[Path, list[Path]] = {}
    for path in find_images(hr):
        found.setdefault(path.relative_to(hr).parent / plain(path.stem), []).append(path)
    return found


def find_partner(name: Path, high_res: dict[Path, list[Path]]) -> Path | None:
    """The HR image of an LR image, at the same place or at the top; an equal name comes first.

    Args:
        name: of the LR image, relative to its folder.
        high_res: what `partners_in` found.
    """
    for folder in (name.parent, Path()):
        alike = high_res.get(folder / plain(name.stem), [])
        if alike:
            return min(alike, key=lambda path: path.stem != name.stem)
    return None


def plain(stem: str) -> str:
    """`baby` of `babyx4`, `baby_LRBI_x4`, `baby_HR`, `baby_SRF_4_LR` and others of benchmarks."""
    marks = r"(?<=.)([_-]?x\d[a-z]?|[_-](lr[a-z]*|hr|gt|sr|srf_\d|bicubic))+$"
    return re.sub(marks, "", stem, flags=re.IGNORECASE)


def read_high_res(path: Path, size: tuple[int, int], scale: float) -> np.ndarray:
    """An HR image, without the pixels at the right and the bottom that make no whole LR pixel.

    Args:
        path: of the HR image.
        size: height and width of the result that it is compared with.
        scale: of that result.

    Raises:
        ImageError: it cannot be read, or is of another size.
    """
    high_res = read_image(path)
    height, width = size
    surplus = (high_res.shape[0] - height, high_res.shape[1] - width)
    if not all(0 <= side < scale for side in surplus):
        raise ImageError(
            f"{path} is {high_res.shape[1]}x{high_res.shape[0]}; the result is {width}x{height}"
        )
    return high_res[:height, :width]
