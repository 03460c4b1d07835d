"""What a run logs: metrics.jsonl, TensorBoard events, curves.png."""

import itertools
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary
from tqdm import tqdm

from utils import naming, replacing


class RunLog(AbstractContextManager):
    """`metrics.jsonl`, `curves.png` and TensorBoard events, in a run's folder.

    Args:
        folder: the run's.
        step: the run's step, counted over both phases, that the run goes on from. What an earlier
            process logged of later ones goes: they are done again. So does a line that a kill cut
            short.
    """

    def __init__(self, folder: Path, step: int):
        self.folder, self.metrics = folder, folder / "metrics.jsonl"
        self.rows: list[dict] = []
        if self.metrics.exists():
            lines = self.metrics.read_text("utf-8", errors="replace").splitlines()
            rows = filter(None, map(parse_row, lines))
            self.rows = [row for row in rows if row["run_step"] <= step]
            with replacing(self.metrics) as file:
                file.write("".join(f"{json.dumps(row)}\n" for row in self.rows).encode())
        self.board = Board(folder, step)

    def metric(self, row: dict) -> None:
        """Append a row, `run_step` among its fields, and draw its numbers."""
        row = as_json(row)
        with naming(self.metrics), open(self.metrics, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        self.scalars("validation", numbers, row["run_step"])

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.board.add(step, summary=summary.scalar(f"{group}/{name}", value))

    def scored(self) -> list[dict]:
        """The rows that have a PSNR."""
        return [row for row in self.rows if row.get("psnr") is not None]

    def comparable(self, scores: dict[str, float]) -> list[dict]:
        """The last scored rows, as far back as they were validated on the same images as `scores`.

        Bicubic's scores tell: other images, or other LR images of them, have others.
        """
        bicubic = bicubic_scores(scores)
        same = itertools.takewhile(
            lambda row: bicubic_scores(row) == bicubic, reversed(self.scored())
        )
        return [*same][::-1]

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """`image`: uint8, (H, W, 3)."""
        tag = name.encode("utf-8", "backslashreplace").decode()  # file names may hold any bytes
        self.board.add(step, summary=summary.image(tag, image, dataformats="HWC"))

    def draw_curves(self) -> None:
        draw_curves(self.rows, self.folder / "curves.png")

    def __exit__(self, *exception) -> None:
        self.board.close()


class Board:
    """TensorBoard's file of events, in a run's folder. If it cannot be written, training goes on.

    The usual SummaryWriter writes in a thread, which a full disk ends with a traceback; whoever
    then waits for the thread waits for ever.

    Args:
        folder: the run's.
        step: that the run goes on from. What is logged of later ones is done again: TensorBoard
            forgets it.
    """

    def __init__(self, folder: Path, step: int):
        # TensorBoard reads such files in the order of their names, so the time comes first.
        started = f"{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / f"events.out.tfevents.{started}"
        self.records: RecordWriter | None = None
        with self._going_on():
            # Without a buffer, nothing is left to be written when the file is closed.
            self.records = RecordWriter(open(self.path, "wb", buffering=0))  # noqa: SIM115
        self.add(step + 1, file_version="brain.Event:2")
        self.add(step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, **content) -> None:
        """Write an event, one of protobuf's messages, of a step of the run."""
        event = Event(wall_time=time.time(), step=step, **content)
        with self._going_on():
            if self.records:
                self.records.write(event.SerializeToString())

    def close(self) -> None:
        with self._going_on():
            if self.records:
                self.records.close()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.records = None
            reason = error.strerror or error
            tqdm.write(f"TensorBoard's curves end here: {self.path} cannot be written ({reason})")


def parse_row(line: str) -> dict | None:
    """A line of metrics.jsonl; none of one that a power cut spoiled."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and row.keys() >= {"phase", "step", "run_step"} else None


def bicubic_scores(scores: dict) -> list[float | None]:
    """PSNR and SSIM, to as many digits as are the same on every machine."""
    values = as_json({key: scores.get(f"bicubic_{key}") for key in ("psnr", "ssim")}).values()
    return [None if value is None else round(value, 6) for value in values]


def draw_curves(rows: list[dict], path: Path) -> None:
    """PSNR and losses over the run's steps, for people without TensorBoard."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    quality, losses = figure.subplots(2, 1, sharex=True)
    for phase in dict.fromkeys(row["phase"] for row in rows):
        own = [row for row in rows if row["phase"] == phase]
        scored = [row for row in own if row.get("psnr") is not None]
        steps = [row["run_step"] for row in scored]
        if scored:
            quality.plot(steps, [row["psnr"] for row in scored], ".-", label=f"{phase} phase")
        for term in dict.fromkeys(term for row in own for term in row["losses"]):
            steps = [row["run_step"] for row in own]
            values = [math.nan if (v := row["losses"].get(term)) is None else v for row in own]
            losses.plot(steps, values, ".-", label=f"{phase}: {term}")
    if beside := [row for row in rows if row.get("bicubic_psnr") is not None]:
        steps = [row["run_step"] for row in beside]
        bicubic = [row["bicubic_psnr"] for row in beside]  # of other images after a resume, perhaps
        quality.plot(steps, bicubic, "--", color="gray", label="bicubic")
        quality.legend()
    quality.set_ylabel("validation PSNR on Y, dB")
    losses.set(xlabel="step of the run", ylabel="loss, weight included", yscale="log")
    if rows:
        losses.legend()
    for axes in (quality, losses):
        axes.grid(alpha=0.3)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=100)


def as_json(value):
    """The value with None for what JSON has no word for: nan, and infinity (PSNR of equals)."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
