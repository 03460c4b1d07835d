"""What is upscaled, where results go, and which HR image belongs to an LR image by its name."""

import functools
import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from images.files import Picture, read_picture, to_8_bits, whole_8_bits
from images.kinds import NO_IMAGES, ImageError, find_images, images_among, special_kind
from images.names import composed
from utils import is_writable, listed, nearest, printable

MARK = re.compile(  # of a benchmark's images, the last of a name: a scale, or another
    r"(?<=.)(?:[_-]?x(\d)[a-z]?|[_-](?:lr[a-z]*|hr|gt|sr|srf_\d|bicubic))$", re.IGNORECASE
)


class UsageError(ValueError):
    """What was asked for cannot be done; the arguments are lines that say what to change."""

    def __str__(self) -> str:
        return "\n  ".join(map(str, self.args))


def in_lines(error: Exception) -> str:
    """An error's arguments, a line each, whatever a name in one of them has."""
    return "\n  ".join(printable(str(line)) for line in error.args)


@dataclass(frozen=True)
class Input:
    """An image to read.

    Attributes:
        path: of the file.
        root: the folder that its result's name is relative to.
    """

    path: Path
    root: Path

    @property
    def name(self) -> Path:
        return self.path.relative_to(self.root)


@dataclass
class Inputs:
    """What a command line names.

    Attributes:
        images: each file once, in the order in which it was named first.
        others: what looks like images and is not read, a line for each reason.
    """

    images: list[Input]
    others: list[str]


def find_inputs(sources: Sequence[Path], output: Path | None, hr: Path | None = None) -> Inputs:
    """The images that `sources` name.

    Args:
        sources: images, folders that are searched in depth, and patterns of those.
        output: the folder of results; those of an earlier call inside a source are no input.
        hr: folder of HR images; what is not read in it is told, too.

    Raises:
        UsageError: there is none, or one of them is nothing.
    """
    images: dict[tuple, Input] = {}
    others: list[str] = []
    # A shell's * names the results of an earlier call, too.
    results = whereabouts(output) if output else None
    not_output = [source for source in sources if whereabouts(source) != results]
    for source in not_output or sources:
        found = _found(source, output)
        for image in found.images:
            known = images.setdefault(key := identity(image.path), image)
            # Within its folder, if that is named too, whichever comes first.
            if len(image.name.parts) > len(known.name.parts):
                images[key] = image
        others += found.others
    if not images:
        raise UsageError(*others)
    others += find_images(hr).others if hr else []
    return Inputs([*images.values()], [*dict.fromkeys(others)])


def _found(source: Path, output: Path | None) -> Inputs:
    """What one source names."""
    # Path's own questions raise an error for a name that is too long.
    if os.path.isfile(source):
        return Inputs([Input(source, source.parent)], [])
    if os.path.isdir(source):
        return _found_in_folder(source, source, output)
    if os.path.lexists(source) or not glob.has_magic(str(source)):
        raise UsageError(f"{source}: {no_file(source)}")
    matches = matching(source)
    start = next(path for path in source.parents if os.path.lexists(path))
    files = images_among(path for path in matches if not os.path.isdir(path))
    images = [Input(path, path.parent) for path in _not_results(files.images, start, output)]
    others = files.others
    for folder in filter(os.path.isdir, matches):
        inside = _found_in_folder(folder, start, output)
        images += inside.images
        others += inside.others if inside.images else []
    if not images:
        what = "image" if matches else "file or folder"
        raise UsageError(f"{source}: no {what} matches this pattern", *others)
    return Inputs(images, others)


def _found_in_folder(folder: Path, start: Path, output: Path | None) -> Inputs:
    found = find_images(folder)
    paths = _not_results(found.images, start, output)
    none = [] if paths else [f"{folder} {NO_IMAGES}"]
    return Inputs([Input(path, folder) for path in paths], [*none, *found.others])


def matching(pattern: Path) -> list[Path]:
    """The files and folders that a pattern of `*`, `?`, `[abc]` and `**` matches, in order.

    Windows' shell leaves patterns to programs. A part of it that exists as it is written, such as
    `a[1].png`, stands for itself; `**` for folders in any depth.
    """
    found = [Path(pattern.anchor)]
    for part in pattern.relative_to(pattern.anchor).parts:
        found = [folder / name for folder in found for name in _matching_names(folder, part)]
    return sorted(set(found))


def _matching_names(folder: Path, part: str) -> list[str]:
    if os.path.lexists(folder / part):
        return [part]
    names = glob.glob(part, root_dir=folder, recursive=True)
    return ["", *names] if part == "**" else names


def _not_results(paths: list[Path], start: Path, output: Path | None) -> list[Path]:
    """Without those in the folder of results, unless all that is below `start` is in it."""
    if not output:
        return paths
    place_of, results = functools.cache(whereabouts), whereabouts(output)

    def is_result(path: Path) -> bool:
        return any(place_of(folder) == results for folder in path.parents)

    if is_result(start.resolve() / "any"):
        return paths
    return [path for path in paths if not is_result(path.resolve())]


def identity(path: Path) -> tuple:
    """Equal for two spellings of a file; a link to it, or its copy elsewhere, is another one.

    Names may ignore case and how an accent is written, which realpath tells on Windows alone.
    """
    number = os.stat(path).st_ino if os.path.exists(path) else 0
    return whereabouts(path.parent), composed(path.name).casefold(), number


def whereabouts(folder: Path) -> tuple:
    """Equal for two spellings of a folder, and for a link to it; it need not be there yet."""
    there = nearest(folder)
    rest = folder.absolute().relative_to(there)
    found = os.stat(there) if os.path.exists(there) else None
    # A drive may be missing, and some network drives number no folders.
    known = (found.st_dev, found.st_ino) if found and found.st_ino else (os.path.realpath(there),)
    return *known, composed(rest.as_posix()).casefold()


def places(paths: Iterable[Path]) -> set:
    """Of files: what two sets have in common is a file, under any spelling or through a link."""
    return {place for path in paths for place in (path.resolve(), identity(path))}


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
    if not is_writable(folder):
        raise UsageError(f"the output folder {folder} is not writable; choose another with -o")


def partners_in(hr: Path) -> dict[Path, list[Path]]:
    """The HR images by their place in `hr` and each of their names without marks.

    Raises:
        UsageError: no such folder.
    """
    if os.path.isfile(hr):
        raise UsageError(f"--hr {hr} is a file; name the folder that it is in")
    if not os.path.isdir(hr):
        raise UsageError(f"--hr {hr}: no such folder")
    found: dict[Path, list[Path]] = {}
    for path in find_images(hr).images:
        name = Path(composed(str(path.relative_to(hr))))
        for shorter in without_marks(name.stem):
            found.setdefault(name.parent / shorter, []).append(path)
    return found


def find_partner(name: Path, high_res: dict[Path, list[Path]]) -> Path | None:
    """The HR image of an LR image, at the same place or at the top; an equal name comes first.

    Args:
        name: of the LR image, relative to its folder.
        high_res: what `partners_in` found.

    Raises:
        UsageError: several fit equally well.
    """
    name = Path(composed(str(name)))
    for folder in (name.parent, Path()):
        if distances := distances_from(name, folder, high_res):
            least = min(distances.values())
            fitting = [str(path) for path, far in distances.items() if far == least]
            if len(fitting) > 1:
                raise UsageError(f"{name} may belong to {listed(fitting)}: give it one's name")
            return Path(fitting[0])
    return None


Distance: TypeAlias = tuple[bool, bool, int, int]


def distances_from(
    name: Path, folder: Path, high_res: dict[Path, list[Path]]
) -> dict[Path, Distance]:
    """Of the HR images in a folder that may be an LR image's, how unlike the names are.

    Whether the names differ, and the stems; how many marks HR's has behind a - or _; and how many
    of both had to be left out.
    """
    found: dict[Path, Distance] = {}
    for dropped, (shorter, scales) in enumerate(without_marks(name.stem).items()):
        for path in high_res.get(folder / shorter, ()):
            high = Path(composed(path.name))
            theirs = without_marks(high.stem)
            own = theirs[shorter]
            if scales and scales[len(scales) - len(own) :] != own:
                continue  # tex2.png is no HR image of tex1x4.png, although both may be of te
            far = dropped + list(theirs).index(shorter)
            unlike = high.name != name.name, high.stem != name.stem
            found.setdefault(path, (*unlike, separate_marks(theirs), far))
    return found


def without_marks(stem: str) -> dict[str, list[str]]:
    """The stem, and what is left without the last, the last two... marks of benchmarks.

    `baby_LRBI_x4`, `baby_LRBI` and `baby`; each with the scales that it is without, the last first.
    """
    names: dict[str, list[str]] = {stem: []}
    scales: list[str] = []
    while mark := MARK.search(stem):
        stem = stem[: mark.start()]
        scales = [*scales, mark[1]] if mark[1] else scales
        names[stem] = scales
    return names


def separate_marks(names: Iterable[str]) -> int:
    """How many of the marks that were left out one by one stood behind a - or _."""
    return sum(longer[len(shorter)] in "-_" for longer, shorter in pairwise(names))


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
    alpha = None if picture.alpha is None else to_8_bits(picture.alpha)[:height, :width]
    return Picture(rgb, alpha, picture.gray, picture.profile)
