"""Kill a run with SIGKILL at random moments, go on, and compare with a run that was left alone.

    python tests/kill_and_resume.py [--kills 20] [--seed 0]      POSIX; about a minute

Each try is a fresh run of both phases in a process of its own. It is killed at a random moment
after it has entered a given place: a phase's steps, the hand-over, a validation, the writing of a
checkpoint. The same command then runs to the end. Exit status 0 if all weight files are equal.

The discriminator is a small one, and no curves are drawn: both would take most of the time.
"""

import argparse
import atexit
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else importing it asks the network
import albumentations  # noqa: F401  which each child would import again, as the next one
import torchvision  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
import training.log
import training.runs
import training.validation
from images.files import write_image
from training.runs import CheckpointError, load_checkpoint

RUN = [
    *("train.py", "--train-dir", "photos", "--valid-dir", "photos", "--val-images", "2"),
    *("--features", "8", "--blocks", "1", "--batch-size", "2", "--workers", "0"),
    *("--device", "cpu", "--precision", "fp32", "--log-every", "3", "--val-every", "9"),
    *("--vgg-weights", "random", "--vgg-layer", "conv1_2", "--save-every", "6"),
    *("--psnr.steps", "20", "--psnr.patch", "32", "--gan.steps", "12", "--gan.patch", "32"),
]
PLACES = {  # where -> (owner and name of the function that is waited for, which of its calls)
    "psnr step": (train.Learner, "update_generator", (2, 20)),
    "validation": (training.validation.Validation, "__call__", (1, 5)),
    "checkpoint": (training.runs, "save_checkpoint", (1, 6)),
    # The first are those of the PSNR phase's best.
    "hand-over": (training.runs, "save_generator", (3, 4)),
    "gan step": (train.Learner, "update_discriminator", (1, 12)),
}


class SmallDiscriminator(nn.Sequential):
    """With batch norm, whose statistics are saved too; 19 MB of last.pt, so writing takes time."""

    def __init__(self, patch_size: int):
        hidden = [nn.Linear(3 * patch_size**2, 512), nn.BatchNorm1d(512), nn.LeakyReLU(0.2)]
        super().__init__(nn.Flatten(), *hidden, nn.Linear(512, 1))


def life(name: str, place: str | None, call: int) -> tuple[int, int]:
    """Start a run in a child; returns its pid and a pipe that says when it is at the place."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    log = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if place:
        announce(*PLACES[place][:2], call, writer)
    else:
        os.fsync = lambda file: None  # which only tells a disk what SIGKILL does not undo
    sys.argv = [*RUN, "--name", name]
    status = 1
    try:
        status = train.main()
        if place:
            os.close(writer)  # if it never came to the place, it is waited for no longer
            signal.pause()  # the kill that comes after the last step counts, too
    except BaseException as error:
        print(repr(error), flush=True)
    finally:
        os._exit(status)


def announce(owner: object, function: str, call: int, writer: int) -> None:
    original, calls = getattr(owner, function), []

    def announcing(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.write(writer, b"x")
        return original(*args, **kwargs)

    setattr(owner, function, announcing)


def finish(name: str) -> None:
    pid, _ = life(name, None, 0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit(f"a run failed:\n{Path(f'{name}.log').read_text()[-2000:]}")


def weights(name: str) -> list[bytes]:
    files = ("psnr.safetensors", "psnr_best.safetensors", "gan.safetensors")
    return [Path("checkpoints", name, file).read_bytes() for file in files]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    images = np.random.default_rng(0)
    train.VGGDiscriminator = SmallDiscriminator
    training.log.draw_curves = lambda rows, path: path.touch()
    torch.optim.Adam([torch.zeros(1)])  # imports torch's compiler, as each child would
    folder, own = tempfile.mkdtemp(prefix="kill-and-resume-"), os.getpid()
    atexit.register(lambda: os.getpid() == own and shutil.rmtree(folder))
    os.chdir(folder)
    Path("photos").mkdir()
    for i in range(4):
        write_image(images.integers(0, 256, (64, 64, 3), np.uint8), Path(f"photos/{i}.png"))

    finish("whole")
    expected, killed, writing, identical, unreadable = weights("whole"), 0, 0, 0, 0
    for number in range(options.kills):
        place = list(PLACES)[number % len(PLACES)]
        call = moments.randint(*PLACES[place][2])
        name = f"killed{number}"
        pid, reader = life(name, place, call)
        select.select([reader], [], [], 300)
        time.sleep(moments.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        os.close(reader)
        last = Path("checkpoints", name, "last.pt")
        writing += any(last.parent.glob(".last.pt~*.tmp"))
        at = "before the first checkpoint"
        if last.exists():
            try:
                checkpoint = load_checkpoint(last)
                at = f"last.pt at {checkpoint['phase']} {checkpoint['step']}"
            except CheckpointError as error:
                unreadable += 1
                at = str(error)
        finish(name)
        same = weights(name) == expected
        identical += same
        print(f"{place} {call}: {at}; {'identical' if same else 'DIFFERENT'}", flush=True)
        shutil.rmtree(Path("checkpoints", name))
    print(
        f"kills tried {options.kills}, hit {killed} ({writing} with last.pt half written), "
        f"runs identical {identical}, checkpoints unreadable {unreadable}"
    )
    return 0 if identical == killed == options.kills and not unreadable else 1


if __name__ == "__main__":
    sys.exit(main())
