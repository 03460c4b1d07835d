"""What people see of a run while it trains: losses, speed, the GAN's balance, faults."""

import itertools
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import TERMS
from training.ranks import Part
from training.runs import RunFolder, TrainingError
from training.settings import At, against_divergence
from utils import Bar

LOSSES = (*TERMS, "discriminator")  # the order they are shown in
LONG_ROW = 5  # more skipped steps in a row than these are no bad luck
LONG_WAIT, LARGE_SHARE = 60, 0.2  # seconds without crops, and of all seconds, that are told of
FP16_NOTE = " (fp16: now and then while its loss scale is being found is normal)"


class Monitor:
    """Watches one phase: reads the means of its steps and shows them where people look.

    Every rank has one, since they read together. Only the first one's is seen: the others' bars,
    output and folders are silent.

    Args:
        at: where the phase goes on from.
        seconds: that the phase has taken so far.
        device: of the run.
        run: has the settings and the ranks, and takes the curves.
    """

    def __init__(self, at: At, seconds: float, device: torch.device, run: RunFolder):
        self.config, self.run = run.config, run
        self.means, self.balance = IntervalMeans(), Balance()
        self.clock = Clock(self.config.batch_size, device, seconds)
        self.reading: dict[str, float] = {}  # the last one
        self.faults = Faults()
        self.bar = Bar(
            desc=at.phase,
            total=self.config.phase(at.phase).steps,
            initial=at.step,
            unit="step",
        )

    def watch(self, loader: Iterable[Part]) -> Iterator[list[Part]]:
        """The loader's batches, each as the list of its parts; meanwhile the bar moves."""
        pieces = iter(loader)
        try:
            while True:
                begin = time.perf_counter()
                parts = list(itertools.islice(pieces, self.config.accumulate))
                self.clock.waited += time.perf_counter() - begin
                if not parts:
                    return
                yield parts
                self.bar.update()
        finally:
            self.bar.close()

    def add(self, values: dict[str, Tensor]) -> None:
        """What a step measured; it stays on the device until it is read."""
        self.means.add(values)

    def read(self, at: At, lr: float, stopped: bool = False) -> None:
        """Take the means since the last reading; show them, and say what is wrong.

        Raises:
            TrainingError: max_skipped steps in a row were not finite, or a run is stopped in a long
                row of them: nothing is saved then, as the weights may be what is wrong.
        """
        means, self.faults = self.means.read(self.run.ranks.mean)
        if self.faults.longest >= self.config.max_skipped or (
            stopped and self.faults.in_a_row > LONG_ROW
        ):
            raise TrainingError(
                f"{at}: {self.faults.longest} steps in a row were skipped ({self.faults}); "
                f"{self.run.fallback}. {against_divergence(self.config, at.phase)}"
            )
        self.reading = means | {"lr": lr} | self.clock.read(self.faults.steps)
        self.bar.set_postfix({key: f"{means[key]:.4f}" for key in LOSSES if key in means})
        self.tell(at, self.clock.complaint())
        self.run.scalars(at.phase, self.reading | {"skipped": self.faults.faulty}, at)
        if self.faults.faulty:
            self.tell(at, f"{self.faults}{FP16_NOTE if self.config.precision == 'fp16' else ''}")
        if "pairs right" in means:
            self.tell(
                at, self.balance.judge(means["pairs right"], means["discriminator"], at.phase)
            )

    def tell(self, at: At, sentence: str) -> None:
        if sentence:
            self.bar.write(f"{at.phase} {at.step}: {sentence}")

    def row(self, scores: dict[str, float]) -> dict:
        """A validation's scores and the last reading, as metrics.jsonl holds them."""
        losses = {term: self.reading[term] for term in LOSSES if term in self.reading}
        others = {key: value for key, value in self.reading.items() if key not in losses}
        return {"seconds": self.clock.seconds()} | scores | {"losses": losses} | others


# ------------------------------------------------------------------------ means over an interval


@dataclass(frozen=True)
class Faults:
    """Steps of an interval in which something was not finite; such a step is skipped."""

    steps: int = 0  # in all
    faulty: int = 0
    in_a_row: int = 0  # at the end of the interval
    longest: int = 0  # row of faulty ones in the interval, with those right before it
    missing: dict[str, int] = field(
        default_factory=dict
    )  # what was not finite -> in how many steps

    def __str__(self) -> str:
        names = ", ".join(f"{name} ({times})" for name, times in self.missing.items())
        return f"{self.faulty} of {self.steps} steps skipped, not finite: {names}"


class IntervalMeans:
    """Means of what the steps of an interval measured, and how many steps were not finite.

    All of it stays on the device until it is read, for reading waits for a GPU.
    """

    def __init__(self):
        self.names: list[str] = []
        self.in_a_row: Any = 0  # faulty steps up to now
        self.longest: Any = 0  # such row since the last reading
        self._clear()

    def _clear(self) -> None:
        self.steps = 0
        self.faulty: Any = 0  # from the first step on a tensor on the device, and so the next two
        self.sums: Any = 0
        self.finite: Any = 0

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


class Clock:
    """How fast a phase goes, and how long it waited for data; over all its processes' lives.

    Args:
        batch_size: images of a step.
        device: its peak memory is read, too.
        seconds: that the phase has taken in earlier processes.
    """

    def __init__(self, batch_size: int, device: torch.device, seconds: float):
        self.batch_size, self.device = batch_size, device
        self.begin = time.perf_counter() - seconds
        self.elapsed = self.waited_in_all = 0.0  # of this process's steps
        self.has_complained = False
        self.restart()

    def seconds(self) -> float:
        return round(time.perf_counter() - self.begin, 1)

    def restart(self) -> None:
        """After a validation, say, which is no step."""
        self.since, self.waited = time.perf_counter(), 0.0

    def read(self, steps: int) -> dict[str, float]:
        """Of the steps since the last reading: images a second, share of the time without data."""
        elapsed = time.perf_counter() - self.since
        self.elapsed, self.waited_in_all = self.elapsed + elapsed, self.waited_in_all + self.waited
        speed = {"images/s": steps * self.batch_size / elapsed, "data wait": self.waited / elapsed}
        memory = peak_memory(self.device)
        self.restart()
        return speed | ({} if memory is None else {"peak GiB": memory})

    def complaint(self) -> str:
        """A sentence, once: a minute or more, and much of the time, went to waiting for crops."""
        share = self.waited_in_all / self.elapsed if self.elapsed else 0.0
        if self.has_complained or self.waited_in_all < LONG_WAIT or share < LARGE_SHARE:
            return ""
        self.has_complained = True
        return f"{share:.0%} of the time goes to waiting for crops; more --workers may help"


# ------------------------------------------------------------------------------ the GAN's balance


class Balance:
    """Notices when one side of the GAN has not learned for a while.

    A pair is a real patch and the generator's version of it, or with a U-Net a pixel of both; the
    discriminator ranks it right if it finds the real one more real. 50% is guessing. Above 99% with
    next to no loss, its feedback to the generator hardly changes any more from step to step.
    """

    PATIENCE = 10  # readings of the log in a row

    def __init__(self):
        self.verdict, self.readings = "", 0

    def judge(self, pairs_right: float, d_loss: float, phase: str) -> str:
        """Takes an interval's means; returns a sentence when a verdict has just become lasting.

        Args:
            pairs_right: share, from 0 to 1.
            d_loss: the discriminator's loss; 2 ln 2 = 1.39 is guessing.
            phase: whose learning rate it is.
        """
        verdict = ""
        if pairs_right > 0.99 and d_loss < 0.05:
            verdict = (
                f"the discriminator has won: it ranks {pairs_right:.0%} of pairs right and hardly "
                f"loses anything. Lower {phase}.lr, or give the generator's other terms more weight"
            )
        elif abs(pairs_right - 0.5) < 0.05 and d_loss > 1.3:
            verdict = (
                f"the discriminator learns nothing: it ranks {pairs_right:.0%} of pairs right, "
                f"which is guessing. Raise {phase}.lr or batch_size, and look at samples/"
            )
        kind = verdict.partition(":")[0]
        self.readings = self.readings + 1 if kind == self.verdict else 1
        self.verdict = kind
        return verdict if self.readings == self.PATIENCE else ""


# ------------------------------------------------------------------------------------------ memory


def peak_memory(device: torch.device) -> float | None:
    """GiB: the most that tensors took on the GPU, or this process on the CPU; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "linux":
        # Not ru_maxrss, which begins at what the process that started this one had.
        status = Path("/proc/self/status").read_text()
        if peak := re.search(r"VmHWM:\s+(\d+) kB", status):  # some containers leave it out
            return int(peak[1]) / 2**20
    try:
        import resource  # POSIX only
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
