"""The command line of test.py. Nothing here needs torch, which takes seconds to import."""

import argparse
from pathlib import Path

from upscaling.arguments import a_path, not_empty, part_of_name, positive, tile_size


def parse_args() -> argparse.Namespace:
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
        "wrote last, or else the one for photographs in the box",
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
