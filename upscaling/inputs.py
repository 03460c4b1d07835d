"""What is upscaled, where results go, and which HR image belongs to an LR image by its name."""

import os
import re
from pathlib import Path

from images.files import Picture, read_picture, whole_8_bits
from images.kinds import NO_IMAGES, Found, ImageError, find_images, special_kind
from utils import listed


class UsageError(ValueError):
    """A command line that cannot be carried out; no image has been written."""


def find_inputs(source: Path, output: Path, hr: Path | None = None) -> tuple[Found, Path]:
    """The images that `source` names, and the folder that their results' names are relative to.

    Args:
        source: an image, or a folder that is searched in depth.
        output: where results go; those of an earlier call inside `source` are no input.
        hr: folder of HR images; what is not read in it is told, too.

    Raises:
        UsageError: there is none.
    """
    others = find_images(hr).others if hr else []
    # Path's own questions raise an error for a name that is too long.
    if os.path.isfile(source):
        return Found([source], others), source.parent
    if not os.path.isdir(source):
        raise UsageError(f"{source}: {no_file(source)}")
    results = output.resolve() if output.resolve() != source.resolve() else None
    found = find_images(source)
    found.images = [path for path in found.images if results not in path.resolve().parents]
    if not found.images:
        raise UsageError("\n  ".join([f"{source} {NO_IMAGES}", *found.others]))
    found.others += others
    return found, source


def no_file(path: Path) -> str:
    """What a path is that is neither a file nor a folder."""
    if not os.path.lexists(path):
        return "no such file or folder"
    return f"{special_kind(path)}; give a file" if path.exists() else "a link that leads nowhere"


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
    for path in find_images(hr).images:
        found.setdefault(path.relative_to(hr).parent / plain(path.stem), []).append(path)
    return found


def find_partner(name: Path, high_res: dict[Path, list[Path]]) -> Path | None:
    """The HR image of an LR image, at the same place or at the top; an equal name comes first.

    Args:
        name: of the LR image, relative to its folder.
        high_res: what `partners_in` found.

    Raises:
        UsageError: several fit equally well.
    """
    wanted = plain(name.stem)

    def distance(path: Path) -> tuple[bool, ...]:
        return path.name != name.name, path.stem != name.stem, path.stem != wanted

    for folder in (name.parent, Path()):
        if alike := high_res.get(folder / wanted):
            nearest = min(map(distance, alike))
            fitting = [str(path) for path in alike if distance(path) == nearest]
            if len(fitting) > 1:
                raise UsageError(f"{name} may belong to {listed(fitting)}: give it one's name")
            return Path(fitting[0])
    return None


def plain(stem: str) -> str:
    """`baby` of `babyx4`, `baby_LRBI_x4`, `baby_HR`, `baby_SRF_4_LR` and others of benchmarks."""
    marks = r"(?<=.)([_-]?x\d[a-z]?|[_-](lr[a-z]*|hr|gt|sr|srf_\d|bicubic))+$"
    return re.sub(marks, "", stem, flags=re.IGNORECASE)


def read_high_res(path: Path, size: tuple[int, int], scale: float) -> Picture:
    """An HR image, 8 bits, without the pixels at its right and bottom that make no whole LR pixel.

    Args:
        path: of the HR image.
        size: height and width of the result that it is compared with.
        scale: of that result.

    Raises:
        ImageError: it cannot be read, not all of it is there, or it is of another size.
    """
    picture = read_picture(path)
    (height, width), (own_height, own_width) = size, picture.rgb.shape[:2]
    if not all(0 <= side < scale for side in (own_height - height, own_width - width)):
        raise ImageError(f"{path} is {own_width}x{own_height}; the result is {width}x{height}")
    rgb = whole_8_bits(picture, path)[:height, :width]
    return Picture(rgb, gray=picture.gray, profile=picture.profile)
