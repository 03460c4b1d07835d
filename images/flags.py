"""The command line of dataset.py. Nothing here needs NumPy or torch, which take time to import."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from config import Degradation, add_flags, check_fields, require, setting, unflatten


@dataclass(frozen=True)
class Preview:
    """Which samples are drawn.

    Raises:
        ValueError: a value that cannot work; the message names it and the remedy.
    """

    scale: int = setting(4, "HR size over LR size: 1, 2, 3, 4 or 8", choices=(1, 2, 3, 4, 8))
    seed: int = setting(0, "of the sample stream", low=0, below=2**64)
    patch: int = setting(128, "side of the HR crop in pixels", low=1, most=1024)
    busiest_of: int = setting(
        1, "places drawn for each crop, the busiest of which is cut", low=1, most=100
    )
    samples: int = setting(12, "how many", low=1, most=100)

    def __post_init__(self):
        check_fields(self, "")
        fits = max(1, self.patch // self.scale) * self.scale
        remedy = f"the scale needs a multiple of {self.scale}, like {fits}"
        require(self.patch == fits, "patch", self.patch, remedy)


def parse_args(args: list[str] | None = None) -> tuple[argparse.ArgumentParser, dict]:
    """The parser of the command that a command line names, and its flags.

    Of `preview` these are folder, output, and the Preview and Degradation that the others make.
    """
    parser = argparse.ArgumentParser(description="Get images to train on, and look at samples.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    div2k = commands.add_parser("div2k", help="fetch DIV2K (4 GB) into data/train and data/valid")
    div2k.add_argument("--root", type=Path, default=Path("data"), help="default: data")

    look = commands.add_parser(
        "preview",
        help="draw degraded crops of a folder's images, to look at before training",
        description="Draw the first crops that training would cut out of a folder's images: the "
        "degraded LR, enlarged, beside its HR, and what was drawn for it. Training with the same "
        "folder, seed, scale, crop (--psnr.patch and --psnr.busiest-of) and degradation sees the "
        "same crops. As training does, it packs the folder's images into a file there, once.",
        usage="python dataset.py preview FOLDER [-o FILE] [--FIELD VALUE ...]",
        allow_abbrev=False,
    )
    look.add_argument("folder", type=Path, metavar="FOLDER", help="HR images, at any depth")
    look.add_argument(
        *("-o", "--output"),
        type=Path,
        default=Path("preview.png"),
        metavar="FILE",
        help="a PNG to write (default: preview.png)",
    )
    add_flags(look, Preview(), prefix="")
    group = look.add_argument_group("degradation", "As in train.py, where the level is none.")
    add_flags(group, Degradation.of_level("strong"), prefix="degradation.")

    flags = vars(parser.parse_args(args))
    if flags["command"] == "div2k":
        return div2k, flags
    try:
        return look, read_preview(**flags)
    except ValueError as error:
        look.error(str(error))


def read_preview(command: str, folder: Path, output: Path, **settings) -> dict:
    """The flags of `preview`, those of its two dataclasses as one of each.

    Raises:
        ValueError: a value that cannot work; the message names it and the remedy.
    """
    changes = unflatten(settings)
    degradation = Degradation.of_level(**{"level": "strong"} | changes.pop("degradation", {}))
    drawn = Preview(**changes)
    check_fields(degradation, "degradation.")
    require(output.suffix.lower() == ".png", "-o", str(output), "give a name that ends in .png")
    return dict(
        command=command, folder=folder, output=output, settings=drawn, degradation=degradation
    )
