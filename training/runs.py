"""A run's folder: who may write in it, what a resume may change, checkpoints, kept generators."""

import dataclasses
import functools
import itertools
import json
import math
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from config import PHASES, Config, flat
from formats.tensors import UnreadableError, load_tensors
from images.files import write_image
from images.kinds import is_of_the_system
from images.locks import locked
from training.log import RunLog
from training.ranks import Ranks
from training.settings import (
    START,
    At,
    against_divergence,
    idle_settings,
    list_changes,
    phases_left,
    settings_of_weights,
    with_what_is_over,
)
from upscaling.devices import DeviceError, is_out_of_memory
from utils import naming, put, remove_leftovers, replacing
from weights import Generator, save_generator

RUNS = Path("checkpoints")
SETTINGS = ("config.json", "events.out.tfevents.*")  # written before the first step
RESULTS = (
    *("psnr.safetensors", "psnr_best.safetensors", "gan.safetensors", "generators/*"),
    *("metrics.jsonl", "curves.png", "samples/*"),
)
KEYS = {"phase", "step", "before", "seconds", "config"}  # that every last.pt has


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the cause and the remedy."""


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says why and what to do."""


class Stateful(Protocol):
    """What is saved and restored: train.py's Learner."""

    at: At
    dtype: torch.dtype

    @property
    def ema(self) -> Generator: ...

    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...


def by_the_first_rank(method: Callable[..., None]) -> Callable[..., None]:
    """One process writes the folder; the method returns at once on other ranks."""

    @functools.wraps(method)
    def calling(self: "RunFolder", *args) -> None:
        if self.ranks.first:
            method(self, *args)

    return calling


class RunFolder(AbstractContextManager):
    """checkpoints/NAME. While open, no other process can train in it.

    Args:
        config: of the run.
        ranks: that share the run; the first writes.

    Raises:
        DeviceError: on entering, if another process trains in it.
    """

    def __init__(self, config: Config, ranks: Ranks):
        self.config, self.ranks = config, ranks
        self.folder = RUNS / config.name
        self.last = self.folder / "last.pt"
        self.at = START  # where it goes on from
        self.checkpoint: dict | None = None  # until all of it is restored
        # That it trains and validates on, ids and their contents; None: it is new.
        self.packs: dict[str, str] | None = None
        self.log: RunLog  # once it is open, on the first rank
        self.open_files = ExitStack()

    def __enter__(self) -> "RunFolder":
        if self.ranks.first:
            with naming(RUNS):
                RUNS.mkdir(exist_ok=True)
            # Beside the folder: a run that ends for want of data leaves no folder behind.
            lock = locked(RUNS / f".{self.config.name}.lock", self._refuse)
            self.open_files.enter_context(lock)
        return self

    def _refuse(self, holder: str) -> None:
        raise DeviceError(
            f"another process{holder} is training {self.folder} right now; "
            "wait for it, or choose another --name"
        )

    def __exit__(self, *exception) -> None:
        self.open_files.close()

    # ------------------------------------------------------------------------------------ resuming

    def resume(self, given: set[str]) -> None:
        """Read last.pt, if there is one; say what changed since, and what has no effect.

        From here on `config` has, of what is over, the settings that it was done with.

        Args:
            given: the settings that the command line names.

        Raises:
            CheckpointError: it cannot be read, or is of another network.
        """
        if not self.last.exists():
            now = flat(dataclasses.asdict(self.config))
            for field, why in idle_settings(self.config).items():
                if field in given:
                    print(f"{field} is {now[field]!r}: {why}")
            return
        checkpoint = load_checkpoint(self.last)
        if not checkpoint.keys() >= KEYS:
            raise CheckpointError(f"{self.last} was not written by train.py; choose another --name")
        # A setting that a checkpoint does not know came later; its default is how things were.
        had = flat(dataclasses.asdict(Config())) | flat(checkpoint["config"])
        self.at = At(*(checkpoint[key] for key in ("phase", "step", "before")))
        self.checkpoint, packs = checkpoint, checkpoint.get("packs", [])
        # Until version 1.1 there were ids alone.
        self.packs = packs if isinstance(packs, dict) else dict.fromkeys(packs, "")
        try:
            changes = list_changes(self.config, had, self.at)
            self.config = with_what_is_over(self.config, had, self.at)
        except ValueError as error:
            raise CheckpointError(
                f"{self.last} was trained with {error}: "
                "give that value, or choose another --name for a new run"
            ) from error
        for change in changes:
            print(f"Changed since the last run: {change}")
        print(f"Going on from {self.last}: {self.at}")

    @property
    def fallback(self) -> str:
        """What there is to go on from, in words."""
        return f"{self.last} is older" if self.last.exists() else "there is no checkpoint yet"

    def phases_left(self) -> list[str]:
        """Those with steps to do."""
        return phases_left(self.config, self.at)

    def phases_to_visit(self) -> list[str]:
        """Those from where the run is; of one that has no step left, only the end is to be done."""
        later = PHASES[PHASES.index(self.at.phase) :]
        return [name for name in later if self.config.phase(name).steps > 0]

    def phases_to_begin(self) -> list[str]:
        """Those of which no step is done."""
        left = self.phases_left()
        return [name for name in left if self.at.step == 0 or name != self.at.phase]

    def restore(self, learner: Stateful) -> float:
        """Load the checkpoint, if there is one, into the learner of its phase, and let go of it.

        Args:
            learner: of the first of `phases_to_visit`, which is the checkpoint's; later ones find
                no checkpoint any more.

        Returns:
            Seconds that the phase has taken until now.

        Raises:
            CheckpointError: it does not fit the learner.
        """
        checkpoint, self.checkpoint = self.checkpoint, None
        if checkpoint is None:
            return 0.0
        learner.at = self.at
        try:
            learner.load_state_dict(checkpoint)
        except (KeyError, RuntimeError, ValueError) as error:
            if is_out_of_memory(cause := error.__cause__ or error):
                raise cause from None
            raise CheckpointError(
                f"{self.last} does not fit this configuration ({error}); "
                "undo what changed, or choose another --name for a new run"
            ) from error
        before, now = checkpoint.get("dtype"), str(learner.dtype)
        if before not in (None, now):  # `auto` depends on the machine
            print(f"The run computed in {before}, and goes on in {now}; --precision chooses")
        return checkpoint["seconds"]

    # ------------------------------------------------------------------------------------- writing

    @by_the_first_rank
    def open_log(self) -> None:
        """Log from where the checkpoint is; from here on the folder exists."""
        if self.checkpoint is None:
            set_aside(self.folder, Path(self.config.init_from))
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        for written in (".", "samples", "generators"):
            remove_leftovers(self.folder / written)
        settings = json.dumps(dataclasses.asdict(self.config), indent=2)
        path = self.folder / "config.json"
        with replacing(path) as file:
            file.write(f"{settings}\n".encode())
        self.log = self.open_files.enter_context(RunLog(self.folder, self.at.run_step))

    @by_the_first_rank
    def scalars(self, group: str, values: dict[str, float], at: At) -> None:
        """Points of TensorBoard's curves."""
        self.log.scalars(group, values, at.run_step)

    @by_the_first_rank
    def record(self, at: At, row: dict) -> None:
        """A line of metrics.jsonl."""
        self.log.metric({"phase": at.phase, "step": at.step, "run_step": at.run_step} | row)

    @by_the_first_rank
    def sample(self, stem: str, picture: np.ndarray, at: At) -> None:
        """A picture of a validation image, in samples/ and in TensorBoard."""
        file = self.folder / "samples" / f"{stem}_{at.run_step:07d}_{at.phase}.png"
        write_image(picture, file)
        self.log.picture(stem, picture, at.run_step)

    @by_the_first_rank
    def keep_generators(self, ema: Generator, at: At, scores: dict[str, float]) -> None:
        """The PSNR phase's best by PSNR; of the GAN phase, whose PSNR says little, the last few."""
        if scores:
            rows = self.log.comparable(scores)
            if self.log.scored() and not rows:
                self._tell_other_images(at)
            best = max((row["psnr"] for row in rows if row["phase"] == "psnr"), default=-math.inf)
            if at.phase == "psnr" and scores["psnr"] > best:
                self._write_generator(ema, "psnr_best.safetensors", at, scores)
        if at.phase == "gan" and self.config.keep_generators:
            folder = self.folder / "generators"
            folder.mkdir(exist_ok=True)
            name = f"gan_{at.step:07d}.safetensors"
            self._write_generator(ema, f"generators/{name}", at, scores)
            numbered = folder.glob(f"gan_{'[0-9]' * 7}.safetensors")
            # Any of later steps are from before a resume; they count once the run gets there.
            until_here = sorted(path for path in numbered if path.name <= name)
            for old in until_here[: -self.config.keep_generators]:
                with suppress(OSError):  # on Windows, while another program reads it
                    old.unlink()

    def _tell_other_images(self, at: At) -> None:
        tqdm.write(
            f"The validation images have changed by {at}: scores of before do not compare"
            f"{', and psnr_best.safetensors starts anew' if at.phase == 'psnr' else ''}."
        )

    def save(self, learner: Stateful, seconds: float) -> None:
        """Write last.pt: everything needed to go on.

        Raises:
            TrainingError: the weights are not finite; the older file stays.
            OSError: it cannot be written; the older file stays.
        """
        self.refuse_broken(learner.ema, learner.at)
        self._write_last(learner, seconds)

    def refuse_broken(self, ema: nn.Module, at: At) -> None:
        """Gradients are from before their update: only the weights tell what the last one did."""
        tensors = ema.state_dict().values()  # batch norm's statistics too: no step skips them
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise TrainingError(
                f"the weights were no longer finite at {at}; {self.fallback}. "
                f"{against_divergence(self.config, at.phase)}"
            )

    @by_the_first_rank
    def _write_last(self, learner: Stateful, seconds: float) -> None:
        at = learner.at
        progress = dict(phase=at.phase, step=at.step, run_step=at.run_step, before=at.before)
        settings = {"config": dataclasses.asdict(self.config), "dtype": str(learner.dtype)}
        about = {"seconds": seconds, "packs": self.packs} | settings
        save_checkpoint(self.last, progress | about | learner.state_dict())

    @by_the_first_rank
    def finish(self, learner: Stateful) -> None:
        """Write what a phase ends with: its averaged generator and the curves.

        A generator that an earlier session wrote stays: its metadata has the settings of then.
        """
        name = f"{learner.at.phase}.safetensors"
        if learner.at != self.at or step_of(self.folder / name) != learner.at.step:
            self._write_generator(learner.ema, name, learner.at, {})
        self.log.draw_curves()

    def _write_generator(self, ema: Generator, name: str, at: At, scores: dict) -> None:
        settings = settings_of_weights(self.config)
        about = dict(source="train.py", phase=at.phase, step=at.step, config=settings)
        save_generator(ema, self.folder / name, metadata=about | scores)


# ------------------------------------------------------------------------------- checkpoint files


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` whole or not at all: a kill at any moment leaves the old file or the new.

    Raises:
        WriteError: it cannot be written (a full disk, say); the old file is as it was.
    """
    with replacing(path) as file:
        torch.save(state, file)


def load_checkpoint(path: Path) -> dict:
    """Read what `save_checkpoint` wrote, onto the CPU, without running any code it may hold.

    Raises:
        CheckpointError: not a file that `save_checkpoint` wrote, or a damaged one.
    """
    try:
        state, _ = load_tensors(path)
    except UnreadableError as error:
        reason = str(error).partition(";")[0]  # behind it, how to get the file again
        cause = error.__cause__
        if cause and (is_of_the_system(cause) or is_out_of_memory(cause)):
            raise CheckpointError(
                f"{path} cannot be read now ({reason}); it may be whole. "
                "Fix that, then run the same command again."
            ) from error
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({reason}). Move it away to start afresh, or "
            f"choose another --name{advise_start(path.parent)}."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} was not written by train.py; choose another --name")
    return state


def advise_start(folder: Path) -> str:
    """How a new run can go on from what a run without a good last.pt has reached."""
    for name, more in (("psnr.safetensors", " --psnr.steps 0"), ("psnr_best.safetensors", "")):
        if (folder / name).exists():
            return f", where --init-from {folder / name}{more} goes on from its PSNR phase"
    return ""


def step_of(path: Path) -> int | None:
    """The step of a generator's file that train.py wrote; None if there is no such file."""
    try:
        _, metadata = load_tensors(path)
    except UnreadableError:
        return None
    return int(metadata["step"]) if metadata.get("step", "").isdecimal() else None


# ----------------------------------------------------------------------- what another run has left


def set_aside(folder: Path, needed: Path) -> None:
    """Move what an earlier run wrote, whose last.pt is gone, into a folder of its own.

    Args:
        folder: of the new run.
        needed: the file that it starts from; where it is among them it is copied instead, as other
            processes may be reading it.
    """
    results, settings = (
        [path for path in itertools.chain(*map(folder.glob, patterns)) if path.is_file()]
        for patterns in (RESULTS, SETTINGS)
    )

    def is_needed(path: Path) -> bool:
        return needed.exists() and path.samefile(needed)

    if all(map(is_needed, results)):
        return
    number = next(n for n in itertools.count(1) if not (folder / f"earlier-{n}").exists())
    earlier = folder / f"earlier-{number}"
    for path in (*results, *settings):
        target = earlier / path.relative_to(folder)
        with naming(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copy2 if is_needed(path) else put)(path, target)
    print(f"{folder} has results of an earlier run without its last.pt; they are in {earlier} now")
