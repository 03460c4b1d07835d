"""What a run logs: metrics.jsonl, TensorBoard events, curves.png."""

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from utils import replacing


class RunLog(AbstractContextManager):
    """`metrics.jsonl`, `curves.png` and TensorBoard events, in a run's folder.

    Args:
        folder: the run's.
        keep: whether a row that an earlier process logged stays. Rows of steps that are about to
            be done again must go; so does a line that a kill cut short.
        step: the run's step, counted over both phases, that the run goes on from.
    """

    def __init__(self, folder: Path, keep: Callable[[dict], bool], step: int):
        self.folder, self.metrics = folder, folder / "metrics.jsonl"
        self.rows: list[dict] = []
        if self.metrics.exists():
            lines = self.metrics.read_text().splitlines()
            rows = [json.loads(line) for line in lines if line.endswith("}")]
            self.rows = [row for row in rows if keep(row)]
            with replacing(self.metrics) as file:
                file.write("".join(f"{json.dumps(row)}\n" for row in self.rows).encode())
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

    def draw_curves(self) -> None:
        draw_curves(self.rows, self.folder / "curves.png")

    def flush(self) -> None:
        self.board.flush()

    def __exit__(self, *exception) -> None:
        self.board.close()


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
        for term in own[0]["losses"]:
            steps = [row["run_step"] for row in own]
            values = [math.nan if (v := row["losses"].get(term)) is None else v for row in own]
            losses.plot(steps, values, ".-", label=f"{phase}: {term}")
    bicubic = [row["bicubic_psnr"] for row in rows if row.get("bicubic_psnr") is not None]
    if bicubic:
        quality.axhline(bicubic[-1], color="gray", linestyle="--", label="bicubic")
        quality.legend()
    quality.set_ylabel("validation PSNR on Y, dB")
    losses.set(xlabel="step of the run", ylabel="loss, weight included", yscale="log")
    if rows:
        losses.legend()
    for axes in (quality, losses):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def as_json(value):
    """The value with None for what JSON has no word for: nan, and infinity (PSNR of equals)."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
