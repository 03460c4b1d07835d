"""The command lines of test.py and weights.py. What cannot be ends in argparse's message, status 2.

Nothing here needs torch, which takes seconds to import.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

SMALLEST_TILE = 64  # twice the overlap of neighbouring tiles
DEFAULT_NAME = "compact_x4_real"  # in the box, for where nothing was trained yet
SUFFIXES = {  # what can be written -> the kinds of file it is written to
    "basicsr": (".safetensors", ".pth"),
    "official": (".safetensors", ".pth"),
    "old": (".safetensors", ".pth"),
    "onnx": (".onnx",),
}
ALPHAS = (0, 0.2, 0.4, 0.6, 0.8, 1)  # of --pictures

# ----------------------------------------------------------------------------------------- test.py


def parse_test_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="test.py", description="Upscale images with a trained generator.", allow_abbrev=False
    )
    parser.add_argument(
        "input", type=a_path, help="an image, or a folder that is searched in depth"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=a_path,
        default=Path("results"),
        help="a folder, or for one image the file to write: out.png (default: results)",
    )
    add_network_flags(parser.add_argument_group("the network"))
    add_result_flags(parser.add_argument_group("the results"))
    add_score_flags(parser.add_argument_group("how good they are"))
    return parser.parse_args()


def add_network_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--weights",
        type=not_empty,
        metavar="FILE|NAME",
        help="a generator's file, or a name: of one in the box, such as compact_x4_gan, or of a "
        "published one, such as RealESRGAN_x4plus, which is downloaded; default: what train.py "
        f"wrote last, or else {DEFAULT_NAME}",
    )
    group.add_argument("--scale", type=int, help="3, for weights whose file cannot tell x3 from x2")
    group.add_argument(
        "--ensemble",
        action="store_true",
        help="average 8 flips and rotations: slightly better, 8 times slower",
    )
    group.add_argument(
        "--tile",
        type=tile_size,
        default="auto",
        metavar="auto|0|N",
        help="upscale in tiles of at most N input pixels each way; 0: the whole image at once",
    )
    group.add_argument(
        "--batch", type=positive(int), default=1, metavar="N", help="tiles computed at once"
    )
    group.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    group.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="default: auto, bf16 for 8-bit images where the hardware has it",
    )


def add_result_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--outscale",
        type=positive(float),
        metavar="S",
        help="enlarge S times, by MATLAB's bicubic from the network's own scale",
    )
    group.add_argument(
        "--format",
        choices=("png", "jpg", "webp", "same"),
        help="PNG, the default, keeps alpha and 16 bits; same is the input's",
    )
    group.add_argument("--suffix", type=part_of_name, default="", help="goes behind each name: _x4")
    group.add_argument("--skip-existing", action="store_true", help="go on where it stopped")


def add_score_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--compare", action="store_true", help="pictures beside bicubic's, too")
    group.add_argument(
        "--report", action="store_true", help="a page to compare with bicubic: index.html"
    )
    group.add_argument(
        "--hr",
        type=a_path,
        metavar="DIR",
        help="true HR images to score against: baby.png or baby_HR.png for babyx4.png and such",
    )
    group.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        metavar="NAME",
        help="scores of pyiqa (pip install pyiqa) for the table: lpips dists niqe musiq ...",
    )
    group.add_argument("--check-tiles", action="store_true", help="say what tiles change")


# -------------------------------------------------------------------------------------- weights.py


def parse_weights_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="weights.py", description="Convert and interpolate ESRGAN generators."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="write a generator in another layout")
    convert.add_argument(
        "inputs", nargs=1, type=not_empty, metavar="WEIGHTS", help="a file or a name"
    )
    mix = commands.add_parser("interpolate", help="between a PSNR network and a GAN (section 3.4)")
    mix.add_argument(
        "inputs",
        nargs=2,
        type=not_empty,
        metavar="WEIGHTS",  # of argparse's messages, some fail where a positional has two names
        help="of the PSNR network and then of the GAN: files or names",
    )
    mix.add_argument(
        "--alpha",
        type=float,
        nargs="+",
        help=f"0: PSNR, 1: GAN; with --pictures several (default: {' '.join(map(str, ALPHAS))})",
    )
    mix.add_argument(
        "--pictures",
        type=a_path,
        metavar="PHOTOS",
        help="write no network, but what it makes of a photograph, or of each in a folder, at "
        "every alpha, side by side; OUT is then a folder (default: results/interpolated)",
    )
    mix.add_argument(
        "--hr", type=a_path, metavar="DIR", help="true HR images of PHOTOS: PSNR beside each alpha"
    )
    mix.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    for command in (convert, mix):
        command.add_argument("-o", "--output", type=a_path, metavar="OUT", help="the file to write")
        command.add_argument("--to", choices=SUFFIXES, default="basicsr")
        command.add_argument("--half", action="store_true", help="fp16: half the size")
        command.add_argument("--scale", type=int, help="3, where the file cannot tell x3 from x2")
    arguments = parser.parse_args()
    pictures = arguments.command == "interpolate" and arguments.pictures
    if not pictures and arguments.output is None:
        parser.error("-o OUT is missing: the file to write")
    if pictures and (arguments.half or arguments.to != "basicsr"):
        parser.error("--half and --to are for the network, which --pictures does not write")
    if arguments.command == "interpolate" and not pictures:
        if arguments.hr:
            parser.error("--hr DIR goes with --pictures PHOTOS")
        if len(arguments.alpha or ()) != 1:
            parser.error("give one --alpha for the network, or --pictures PHOTOS to see several")
    return arguments


# ------------------------------------------------------------------------------- what words can be


def not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def a_path(text: str) -> Path:
    return Path(not_empty(text))


def part_of_name(text: str) -> str:
    """What can stand in a file's name on any system."""
    if forbidden := sorted({*text} & {*'/\\<>:"|?*'} | {c for c in text if c < " "}):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be part of a file's name: {' '.join(map(repr, forbidden))} in it"
        )
    return text


def positive(kind: type) -> Callable[[str], float]:
    """A parser of numbers above 0."""

    def parse(text: str) -> float:
        number = kind(text)
        if not 0 < number < math.inf:
            raise ValueError
        return number

    parse.__name__ = f"positive {kind.__name__}"  # which argparse's message shows
    return parse


def tile_size(text: str) -> int | None:
    """None stands for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or 0 < int(text) < SMALLEST_TILE:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, 0, or at least {SMALLEST_TILE}")
    return int(text)
