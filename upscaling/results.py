"""What came of the work: told when it fails, and at the end in a table, a page and a few lines."""

import argparse
import errno
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from images.scores import as_text, save_table, with_mean
from upscaling.jobs import Job
from upscaling.report import TABLE, write_page
from upscaling.saving import summary
from upscaling.upscaler import Upscaler, explain
from utils import WriteError, is_writable, printable

# What a disk that is full, closed or out of reach says of the next result, too.
LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.ENXIO}
LASTING |= {errno.ENOTCONN, errno.ESTALE}
IN_VAIN = 2  # results in a row that were not written, after which no more are made


@dataclass
class Results:
    """What came of the jobs of one process, or of all: all its fields are lists."""

    scores: list[dict] = field(default_factory=list)  # rows of the table
    failures: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # what types of files cannot hold
    shown: list[dict] = field(default_factory=list)  # images of the page
    pixels: list[int] = field(default_factory=list)  # of each result
    # Of results since the last one that was written, the system's errors.
    unwritten: list[int] = field(default_factory=list)

    def fail(self, sentence: str) -> None:
        """Tell a failure at once: a night's work may have hours to go, or be stopped."""
        self.failures.append(sentence)
        tqdm.write(printable(f"Failed: {sentence}"), file=sys.stderr)

    @contextmanager
    def noting_failure(self, source: Path) -> Iterator[None]:
        """One file that cannot be read, does not fit in memory or cannot be written stops no other.

        Unless nothing can be written any more: `in_vain`.
        """
        try:
            yield
        except InterruptedError:  # Ctrl-C, in the thread that writes
            return
        except Exception as error:  # of any kind: encoders and metrics raise a dozen
            self.fail(explain(source, error))
            if isinstance(error, WriteError):
                self.unwritten.append(error.errno or 0)

    def in_vain(self, output: Path) -> bool:
        """Whether what the network makes is not written any more to the folder of results."""
        if len(self.unwritten) < IN_VAIN:
            return False
        return LASTING.issuperset(self.unwritten[-IN_VAIN:]) or not is_writable(output)

    def save(self, upscaler: Upscaler, weights: str | Path, arguments: argparse.Namespace) -> None:
        """Print and save the table of scores and the page, where they were asked for."""
        try:
            if arguments.hr or arguments.metrics:
                report_scores(self.scores, arguments.output / TABLE, upscaler.scale)
        except OSError as error:
            self.fail(f"the table was not saved: {error}")
        try:
            if arguments.report and self.shown:  # else one of before may be worth more
                about = f"{Path(weights).name}, {upscaler.size_in_words}, {len(self.shown)} images"
                page = write_page(arguments.output, self.shown, about)
                print(printable(f"Results beside bicubic, to compare by eye: {page}"))
        except OSError as error:
            self.fail(f"the page was not saved: {error}")

    def sum_up(
        self, jobs: list[Job], skipped: set[Path], seconds: float, arguments: argparse.Namespace
    ) -> None:
        """What was left out, what failed, and where the rest is.

        Args:
            jobs: all of them.
            skipped: their results that had been there.
            seconds: that the work took.
            arguments: of the command line.
        """
        for job in jobs:
            if arguments.hr and job.high_res is None:
                print(printable(f"No partner in {arguments.hr}: {job.source}"))
        for line in summary(jobs, arguments.format == "same", self.lost, skipped):
            print(line)
        wanted = len(jobs) - len(skipped)
        failed = "what failed or is not read is named above; " if self.failures else ""
        print(
            f"{len(self.pixels)} of {wanted} images upscaled, "
            f"{sum(self.pixels) / 1e6 / seconds:.2f} megapixels/s; "
            f"{failed}results are in {printable(str(arguments.output))}"
        )


def report_scores(scores: list[dict], path: Path, scale: float) -> None:
    """Print the table, say how it was computed, and save it with all digits."""
    if not scores:
        print("No image was scored.")
        return
    table = with_mean(scores)
    print(as_text(table))
    print(f"Protocol: 8-bit images, {math.ceil(scale)} pixels cropped from each side;", end=" ")
    if "psnr_y" in table[0]:
        print("PSNR in dB / SSIM, on Y (BT.601\nluma in [16, 235]) and on RGB;", end=" ")
        print("SSIM with an 11x11 Gaussian of sigma 1.5;", end=" ")
    print("bicubic is MATLAB's.")
    if "lr_psnr" in table[0]:
        difference = table[-1]["lr_psnr"]
        print(f"Shrunk again, the results equal their inputs to {difference:.2f} dB (RGB).")
    save_table(table, path)
    print(printable(f"The table with all digits: {path}"))
