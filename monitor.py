"""What a run says of itself: means between two lines of its log, the GAN's balance, curves."""

import gc
import json
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

BAND_MARGIN = 0.1  # dB: what another seed, precision or machine may change beyond the recorded

# ------------------------------------------------------------------------ means over an interval


@dataclass(frozen=True)
class Faults:
    """Steps of an interval in which something was not finite; such a step is skipped."""

    steps: int  # in all
    faulty: int
    in_a_row: int  # at the end of the interval
    longest: int  # row that reached into the interval
    missing: dict[str, int]  # what was not finite -> in how many steps

    def __str__(self) -> str:
        names = ", ".join(f"{name} ({times})" for name, times in self.missing.items())
        return f"{self.faulty} of {self.steps} steps skipped, not finite: {names}"


class IntervalMeans:
    """Means of what the steps of an interval measured, and how many steps were not finite.

    All of it stays on the device until it is read, for reading waits for a GPU.
    """

    def __init__(self):
        self.names: list[str] = []
        self.in_a_row = 0  # faulty steps up to now
        self.longest = 0  # such row since the last reading
        self._clear()

    def _clear(self) -> None:
        self.steps, self.faulty, self.sums, self.finite = 0, 0, 0, 0

    def add(self, values: dict[str, Tensor]) -> None:
        """One step's values: scalars, the same names each time."""
        self.names = list(values)
        stacked = torch.stack([value.float() for value in values.values()])
        finite = stacked.isfinite()
        self.sums = self.sums + stacked.where(finite, 0)
        self.finite = self.finite + finite
        faulty = ~finite.all()
        self.faulty = self.faulty + faulty
        self.in_a_row = (self.in_a_row + 1) * faulty
        self.longest = self.in_a_row.clamp(min=self.longest)
        self.steps += 1

    def read(self, mean_of_ranks: Callable[[Tensor], Tensor]) -> tuple[dict[str, float], "Faults"]:
        """Means over the finite values since the last reading, and what was not finite."""
        count = len(self.names)
        counters = torch.stack((self.faulty, self.in_a_row, self.longest))
        read = mean_of_ranks(torch.cat((self.sums, self.finite, counters))).tolist()
        sums, finite, (faulty, in_a_row, longest) = read[:count], read[count:-3], read[-3:]
        means = {
            name: total / times if times else math.nan
            for name, total, times in zip(self.names, sums, finite, strict=True)
        }
        missing = {
            name: math.ceil(self.steps - times)
            for name, times in zip(self.names, finite, strict=True)
            if times < self.steps
        }
        faults = Faults(self.steps, round(faulty), round(in_a_row), round(longest), missing)
        self._clear()
        self.longest = 0
        return means, faults


# ------------------------------------------------------------------------------ the GAN's balance


class Balance:
    """Says in words when one side of the GAN has not learned for a while.

    A pair is a real patch and the generator's version of it; the discriminator ranks it right if
    it finds the real one more real. 50% is guessing. Above 99% with next to no loss, what it tells
    the generator changes hardly any more from step to step.
    """

    PATIENCE = 10  # readings of the log in a row

    def __init__(self):
        self.verdict, self.readings = "", 0

    def judge(self, pairs_right: float, d_loss: float) -> str:
        """Takes an interval's means; returns a sentence when a verdict has just become lasting.

        Args:
            pairs_right: share, from 0 to 1.
            d_loss: the discriminator's loss; 2 ln 2 = 1.39 is guessing.
        """
        verdict = ""
        if pairs_right > 0.99 and d_loss < 0.05:
            verdict = (
                f"the discriminator has won: it ranks {pairs_right:.0%} of pairs right and hardly "
                "loses anything. Lower gan.lr, or give the generator more weight on the other terms"
            )
        elif abs(pairs_right - 0.5) < 0.05 and d_loss > 1.3:
            verdict = (
                f"the discriminator learns nothing: it ranks {pairs_right:.0%} of pairs right, "
                "which is guessing. Raise gan.lr or batch_size, and look at samples/"
            )
        kind = verdict.partition(":")[0]
        self.readings = self.readings + 1 if kind == self.verdict else 1
        self.verdict = kind
        return verdict if self.readings == self.PATIENCE else ""


# -------------------------------------------------------------------------------------- run log


class RunLog(AbstractContextManager):
    """`metrics.jsonl`, `curves.png` and TensorBoard events, in a run's folder.

    Args:
        folder: the run's.
        keep: whether a row that an earlier process logged stays. Those of steps that are about to
            be done again must go; so does a line that a kill cut short.
        step: the run's step, counted over both phases, that it goes on from.
    """

    def __init__(self, folder: Path, keep: Callable[[dict], bool], step: int):
        self.folder, self.metrics = folder, folder / "metrics.jsonl"
        self.rows: list[dict] = []
        if self.metrics.exists():
            lines = self.metrics.read_text().splitlines()
            rows = [json.loads(line) for line in lines if line.endswith("}")]
            self.rows = [row for row in rows if keep(row)]
            temporary = self.metrics.with_name("metrics.jsonl.tmp")
            temporary.write_text("".join(f"{json.dumps(row)}\n" for row in self.rows))
            os.replace(temporary, self.metrics)
        self.board = SummaryWriter(str(folder), purge_step=step + 1)

    def metric(self, row: dict) -> None:
        """Append a row, `run_step` among its fields, and draw its numbers."""
        row = as_json(row)
        with open(self.metrics, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        self.scalars("validation", numbers, row["run_step"])

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.board.add_scalar(f"{group}/{name}", value, step)

    def best(self, phase: str) -> float:
        """The highest PSNR of the phase's validations so far, in dB."""
        scores = [row.get("psnr") for row in self.rows if row["phase"] == phase]
        return max((score for score in scores if score is not None), default=-math.inf)

    def picture(self, name: str, image, step: int) -> None:
        """`image`: uint8, (H, W, 3)."""
        self.board.add_image(name, image, step, dataformats="HWC")

    def draw_curves(self) -> Path:
        """PSNR and losses over the run's steps, for whoever has no TensorBoard at hand."""
        path = self.folder / "curves.png"
        figure = Figure(figsize=(9, 7), layout="constrained")
        quality, losses = figure.subplots(2, 1, sharex=True)
        for phase in dict.fromkeys(row["phase"] for row in self.rows):
            rows = [row for row in self.rows if row["phase"] == phase]
            scored = [row for row in rows if row.get("psnr") is not None]
            steps = [row["run_step"] for row in scored]
            if scored:
                quality.plot(steps, [row["psnr"] for row in scored], ".-", label=f"{phase} phase")
            for term in rows[0]["losses"]:
                steps = [row["run_step"] for row in rows]
                values = [math.nan if (v := row["losses"].get(term)) is None else v for row in rows]
                losses.plot(steps, values, ".-", label=f"{phase}: {term}")
        bicubic = [row["bicubic_psnr"] for row in self.rows if row.get("bicubic_psnr") is not None]
        if bicubic:
            quality.axhline(bicubic[-1], color="gray", linestyle="--", label="bicubic")
            quality.legend()
        quality.set_ylabel("validation PSNR on Y, dB")
        losses.set(xlabel="step of the run", ylabel="loss, weight included", yscale="log")
        if self.rows:
            losses.legend()
        for axes in (quality, losses):
            axes.grid(alpha=0.3)
        figure.savefig(path, dpi=100)
        # Cycles that matplotlib leaves behind hold the frames of all callers. Whoever trains would
        # end without its loader being freed, and wait for that one's processes for ever.
        gc.collect()
        return path

    def flush(self) -> None:
        self.board.flush()

    def __exit__(self, *exception) -> None:
        self.board.close()


def beside_references(rows: list[dict], folder: Path) -> list[str]:
    """Where the last validation of each phase lies among those of recorded runs: a sentence each.

    Args:
        rows: of a finished run's metrics.jsonl.
        folder: holds the metrics.jsonl of other runs of these settings, as *.jsonl.
    """
    texts = [path.read_text() for path in sorted(folder.glob("*.jsonl"))]
    recorded = [last_scores([json.loads(line) for line in text.splitlines()]) for text in texts]
    sentences = []
    for phase, own in last_scores(rows).items():
        others = [scores[phase] for scores in recorded if phase in scores]
        if others:
            low, high = min(others) - BAND_MARGIN, max(others) + BAND_MARGIN
            sentences.append(
                f"{phase} phase: {own:.2f} dB, {'inside' if low <= own <= high else 'OUTSIDE'} "
                f"the band of {len(others)} recorded runs, {low:.2f} to {high:.2f} dB"
            )
    return sentences


def last_scores(rows: list[dict]) -> dict[str, float]:
    """Phase -> the PSNR of its last validation that has one."""
    return {row["phase"]: row["psnr"] for row in rows if row.get("psnr") is not None}


def as_json(value):
    """The value with None for what JSON has no word for: nan, and infinity (PSNR of equals)."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
