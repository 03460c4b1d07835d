"""A result into its file, with what else the original's file said, and what is told of that."""

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from images.files import WRITTEN, Picture, not_held, write_picture
from images.kinds import PartlyWritten
from images.metadata import Metadata
from images.webp import is_lossless_webp
from upscaling.inputs import UsageError
from upscaling.jobs import Job


def save_result(
    picture: Picture,
    job: Job,
    lost: list[str],
    quality: int | None = None,
    keep_time: bool = False,
) -> list[str]:
    """Write the result of a job; returns remarks on it.

    Args:
        picture: the result.
        job: says where it goes.
        lost: takes what the type of the file cannot hold.
        quality: of lossy types, 1 to 100, or None.
        keep_time: give the file the times of its original.

    Raises:
        ImageError: of `write_picture`. A part that is written has its times, and `lost` is filled.
    """
    fault, remark, written = None, "", job.target
    try:
        remark = write_picture(picture, job.target, quality)
    except PartlyWritten as error:
        fault, written = error, error.path
    lost += not_held(picture, job.target)
    if keep_time:
        times = os.stat(job.source)
        os.utime(written, ns=(times.st_atime_ns, times.st_mtime_ns))
    if fault:
        raise fault
    rest = picture.sequence
    all_of_it = f"all {rest.count} {rest.kind}" if rest else ""
    return [*filter(None, dict.fromkeys((all_of_it, picture.remark, remark)))]


def without_metadata(picture: Picture, number: int = 1) -> Picture:
    """The picture, and what follows it in its sequence too; `number` is its place there."""
    rest = picture.sequence.mapped(without_metadata) if picture.sequence else None
    return replace(picture, metadata=Metadata(), sequence=rest)


def refuse_quality(jobs: list[Job], quality: int | None) -> None:
    """Where it would change nothing.

    Raises:
        UsageError: no result is lossy.
    """
    if quality and not any(map(_is_lossy, jobs)):
        kinds = ", ".join(sorted({job.target.suffix.lower() for job in jobs}))
        raise UsageError(f"--quality is for JPEG and lossy WebP; the results will be {kinds}")


def _is_lossy(job: Job) -> bool:
    kind = WRITTEN[job.target.suffix.lower()]
    if kind.name != "WEBP":
        return kind.lossy
    try:
        return not is_lossless_webp(job.source.read_bytes())
    except OSError:  # which reading it will tell
        return True


def summary(jobs: list[Job], same: bool, lost: list[str], skipped: Collection[Path]) -> list[str]:
    """Lines about what is not in the results.

    Args:
        jobs: all of them.
        same: each result was to be of its original's type.
        lost: what `save_result` noted of all jobs.
        skipped: results that had been there.
    """
    lines = [
        f"{what}: left out of {count} image{'s' if count > 1 else ''}"
        for what, count in sorted(Counter(lost).items())
    ]
    others = {
        job.source.suffix.lower()
        for job in jobs
        if WRITTEN.get(job.source.suffix.lower()) is not WRITTEN[job.target.suffix.lower()]
    }
    if same and (unwritten := others - WRITTEN.keys()):
        named = ", ".join(sorted(suffix or "no suffix" for suffix in unwritten))
        lines.append(f"These types are not written, so their results are PNG: {named}")
    if same and ".gif" in others:
        lines.append("GIFs that do not move are PNG now: a GIF has 256 colours")
    if skipped:
        lines.append(f"{len(skipped)} images had a result already and were skipped")
    return lines
