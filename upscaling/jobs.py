"""What is read from where and written to where, all of it checked before any work."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from images.files import WRITTEN, Picture, read_picture
from images.gif import count_frames
from images.kinds import has_suffix
from images.names import composed, digest, fitting, longest_name, name_length
from images.tiff import count_pages
from upscaling.inputs import (
    Input,
    UsageError,
    find_inputs,
    find_partner,
    partners_in,
    places,
    whereabouts,
)


@dataclass(frozen=True)
class Job:
    """One image to upscale."""

    source: Path
    target: Path
    comparison: Path | None  # where the side-by-side picture goes
    high_res: Path | None  # what the result is scored against
    several: tuple[str, ...] = ()  # sequences that the result can hold

    def read(self) -> Picture:
        return read_picture(self.source, self.several)


def plan(
    sources: Sequence[Path],
    output: Path,
    kind: str | None = None,
    suffix: str = "",
    compare: bool = False,
    hr: Path | None = None,
    first_frame: bool = False,
) -> tuple[list[Job], list[str], Path]:
    """The jobs, what is not read and why, a line for each reason, and the folder of results.

    What is not read counts as a failure: status 0 says that each picture has its result.

    Args:
        sources: images, folders that are searched in depth, and patterns of those.
        output: the folder; for one image also the file to write, if it has an image's suffix.
        kind: of results: "png" (None stands for it), "jpg", "webp", "tif", or "same" as the input.
        suffix: goes behind each name.
        compare: whether side-by-side pictures are wanted.
        hr: folder of HR images.
        first_frame: upscale nothing else of animations and of files with several pages.

    Raises:
        UsageError: no inputs, or two results in one place.
    """
    named = output if has_suffix(output) and not os.path.isdir(output) else None
    folder = named.parent if named else output
    inputs = find_inputs(sources, None if named else folder, hr)
    images = inputs.images
    high_res = partners_in(hr) if hr else {}
    if named:
        check_result_file(named, sources, images, kind, suffix, first_frame)
        targets, strips = [named], [Path(f"{named.stem}.png")]
    else:
        endings = [suffix + ending(image.path, kind, first_frame) for image in images]
        refuse_results_among(images, endings, folder)
        targets = [folder / name for name in distinct_names(images, endings)]
        strips = distinct_names(images, [f"{suffix}.png"] * len(images))
    jobs = []
    for image, target, strip in zip(images, targets, strips, strict=True):
        comparison = fitting(folder / "compare" / strip) if compare else None
        several = () if first_frame else WRITTEN[target.suffix.lower()].several
        partner = find_partner(image.name, high_res)
        jobs.append(Job(image.path, target, comparison, partner, several))
    refuse_overwriting(jobs)
    return jobs, inputs.others, folder


def distinct_names(images: list[Input], endings: list[str]) -> list[Path]:
    """What each result is called, relative to the folder of results.

    No two are alike where upper and lower case are, and none depends on the order of the images:
    a.jpg and a.png become a.jpg.png and a.png.png, and each of them alone a.png.

    Args:
        images: no file twice.
        endings: goes behind the name of each.
    """
    choices = [enumerate(_names(image)) for image in images]
    chosen = [next(names) for names in choices]
    while True:
        sharing: dict[str, list[int]] = {}
        for i, (_, name) in enumerate(chosen):
            result = composed(f"{name}{endings[i]}").casefold()
            sharing.setdefault(result, []).append(i)
        groups = [group for group in sharing.values() if len(group) > 1]
        if not groups:
            break
        for group in groups:
            plainest = min(chosen[i][0] for i in group)
            for i in group:
                chosen[i] = next(choices[i]) if chosen[i][0] == plainest else chosen[i]
    return [Path(f"{name}{end}") for (_, name), end in zip(chosen, endings, strict=True)]


def _names(image: Input) -> Iterator[Path]:
    """What its result can be called, from the plainest to what no other's is."""
    whole = image.name
    # a.jpg_large is not a.jpg
    plain = whole.with_suffix("") if has_suffix(whole) else whole
    folder = Path(image.root.resolve().name)
    yield from (plain, whole, folder / plain, folder / whole)
    for place in (whole, image.path.absolute()):
        yield plain.with_name(f"{plain.name}~{digest(place.as_posix())}")


def ending(path: Path, kind: str | None, first_frame: bool) -> str:
    """The suffix of the result of an image.

    With "same", PNG's where its type is not written: GIF is only where it moves, as it has too few
    colours. With None, TIFF's for several pages, of which PNG holds one.
    """
    if kind is None and not first_frame and count_pages(path) > 1:
        return ".tif"
    if kind != "same":
        return f".{kind or 'png'}"
    suffix = path.suffix.lower()
    still = suffix == ".gif" and (first_frame or count_frames(path) == 1)
    return suffix if suffix in WRITTEN and not still else ".png"


def check_result_file(
    output: Path,
    sources: Sequence[Path],
    images: list[Input],
    kind: str | None,
    suffix: str,
    first_frame: bool,
) -> None:
    """Refuse an output that names a file which cannot be the result; arguments as of `plan`.

    Raises:
        UsageError: it is of no type that is written, or contradicts another argument.
    """
    chosen = output.suffix.lower()
    if folder := next(filter(os.path.isdir, sources), None):
        raise UsageError(f"{folder} is a folder, but {output} names one image: give -o a folder")
    if len(images) > 1:
        raise UsageError(f"{output} names one image, not {len(images)}: give -o a folder")
    if chosen not in WRITTEN:
        known = ", ".join(WRITTEN)
        raise UsageError(f"{output}: results cannot be {chosen}; they can be {known}")
    if kind and WRITTEN[chosen] is not WRITTEN[ending(images[0].path, kind, first_frame)]:
        raise UsageError(f"{output} is not what --format {kind} says; leave out one of the two")
    if suffix:
        raise UsageError(f"{output} is the whole name; leave out --suffix")


def refuse_results_among(images: list[Input], endings: list[str], folder: Path) -> None:
    """Where an input may be another one's result, of an earlier call with the same command.

    Raises:
        UsageError: so it is; it would get another name, and be upscaled once more.
    """
    read = {place: image.path for image in images for place in places([image.path])}
    # Names with a folder's are given where several folders have a picture of one name.
    likely = 4 if len({image.root for image in images}) > 1 else 2
    for image, end in zip(images, endings, strict=True):
        for name in islice(_names(image), likely):
            found = read.keys() & places([folder / f"{name}{end}"])
            if other := next((read[place] for place in found if read[place] != image.path), None):
                raise UsageError(f"{other} is an input; choose another output folder with -o")


def neighbours(results: Iterable[tuple[Path, Path]], remedy: str) -> Iterator[tuple[Path, str]]:
    """Inputs whose result would replace what lies beside them, perhaps another photograph.

    Args:
        results: each input, and where its result goes.
        remedy: what to choose instead.

    Yields:
        Each of these inputs, and a sentence on it.
    """
    for source, target in results:
        if os.path.exists(target) and whereabouts(target.parent) == whereabouts(source.parent):
            yield source, f"{target} lies beside {source} already; choose {remedy}"


def refuse_neighbours(results: Iterable[tuple[Path, Path]], remedy: str) -> None:
    """Arguments as of `neighbours`.

    Raises:
        UsageError: there is one.
    """
    for _, sentence in neighbours(results, remedy):
        raise UsageError(sentence)


def refuse_overwriting(jobs: list[Job]) -> None:
    written: dict[str, Path] = {}
    read = places(path for job in jobs for path in (job.source, job.high_res) if path)
    for job in jobs:
        for target in filter(None, (job.target, job.comparison)):
            if read & places([target]):
                raise UsageError(f"{target} is an input; choose another output folder with -o")
            name = composed(str(target)).casefold()  # a folder may be called Compare
            if name in written:
                raise UsageError(
                    f"{written[name]} and {job.source} would both become {target}; rename one"
                )
            written[name] = job.source


def refuse_large_result(target: Path, size: tuple[int, int]) -> None:
    """Before the work on a result that its type of file cannot hold.

    Args:
        target: its file.
        size: its height and width.

    Raises:
        UsageError: so it is.
    """
    kind = WRITTEN[target.suffix.lower()]
    if max(size) > kind.side:
        raise UsageError(
            f"its result would be {size[1]}x{size[0]} pixels, and {kind.name} holds at most "
            f"{kind.side} a side; choose another --format, or a smaller size"
        )


def refuse_long_name(target: Path) -> None:
    """Before the work on a result whose name no file can have.

    Raises:
        UsageError: so it is.
    """
    length, limit = name_length(target.name), longest_name(target.parent)
    if length > limit:
        raise UsageError(
            f"its result's name would be {length} bytes long, and at most {limit} are possible; "
            "rename the image, or shorten --suffix"
        )
