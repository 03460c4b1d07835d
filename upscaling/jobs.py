"""What is read from where and written to where, all of it checked before any work."""

import os
from dataclasses import dataclass
from pathlib import Path

from images.files import WRITTEN, Picture, read_picture
from images.gif import count_frames
from images.kinds import has_suffix
from images.names import fitting, longest_name, name_length
from images.tiff import count_pages
from upscaling.inputs import UsageError, find_inputs, find_partner, partners_in


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
    source: Path,
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
        source: an image, or a folder that is searched in depth.
        output: the folder; for one image also the file to write, if it has an image's suffix.
        kind: of results: "png" (None stands for it), "jpg", "webp", or "same" as the input.
        suffix: goes behind each name.
        compare: whether side-by-side pictures are wanted.
        hr: folder of HR images.
        first_frame: upscale nothing else of animations and of files with several pages.

    Raises:
        UsageError: no inputs, or two results in one place.
    """
    named = result_file(source, output, kind, suffix)
    folder = named.parent if named else output
    found, root = find_inputs(source, folder, hr)
    high_res = partners_in(hr) if hr else {}
    jobs = []
    for path in found.images:
        relative = path.relative_to(root)
        name = path.stem if has_suffix(path) else path.name  # a.jpg_large is not a.jpg
        target = named or folder / relative.with_name(
            name + suffix + ending(path, kind, first_frame)
        )
        strip = target.relative_to(folder).with_suffix(".png") if compare else None
        comparison = fitting(folder / "compare" / strip) if strip else None
        several = () if first_frame else WRITTEN[target.suffix.lower()].several
        jobs.append(Job(path, target, comparison, find_partner(relative, high_res), several))
    refuse_overwriting(jobs)
    return jobs, found.others, folder


def ending(path: Path, kind: str | None, first_frame: bool = False) -> str:
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


def result_file(source: Path, output: Path, kind: str | None, suffix: str) -> Path | None:
    """The file that `output` names, or None where it names a folder; arguments as of `plan`.

    Raises:
        UsageError: it names a file that cannot be the result.
    """
    chosen = output.suffix.lower()
    if os.path.isdir(output) or not has_suffix(output):
        return None
    if os.path.isdir(source):
        raise UsageError(f"{source} is a folder, but {output} names one image: give -o a folder")
    if chosen not in WRITTEN:
        known = ", ".join(WRITTEN)
        raise UsageError(f"{output}: results cannot be {chosen}; they can be {known}")
    if kind and WRITTEN[chosen] is not WRITTEN[ending(source, kind)]:
        raise UsageError(f"{output} is not what --format {kind} says; leave out one of the two")
    if suffix:
        raise UsageError(f"{output} is the whole name; leave out --suffix")
    return output


def refuse_overwriting(jobs: list[Job]) -> None:
    written: dict[Path, Path] = {}
    read = {path.resolve() for job in jobs for path in (job.source, job.high_res) if path}
    for job in jobs:
        for target in filter(None, (job.target, job.comparison)):
            if target.resolve() in read:
                raise UsageError(f"{target} is an input; choose another output folder with -o")
            if target in written:
                raise UsageError(
                    f"{written[target]} and {job.source} would both become {target}; rename one"
                )
            written[target] = job.source


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
