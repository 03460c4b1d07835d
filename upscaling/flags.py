"""The command line of test.py. Nothing here needs torch, which takes seconds to import."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from upscaling.arguments import a_path, not_empty, part_of_name, positive, quality, tile_size

DENOISING = "compact_x4_real takes noise away, and compact_x4_gan keeps and sharpens it"
ELSEWHERE = {  # flags of the Real-ESRGAN programs that are none here -> what to do instead
    "-t": "give --tile N, or leave it out: auto is the default, and 0 the whole image at once",
    "--tile_pad": "leave it out: tiles always overlap",
    "--pre_pad": "leave it out: borders need no padding; --wrap is for seamless textures",
    "-g": "give --device cuda, of whose GPUs CUDA_VISIBLE_DEVICES chooses one; or, with --engine "
    "ncnn, --device vulkan",
    "--gpu-id": "give --device; of several NVIDIA GPUs, CUDA_VISIBLE_DEVICES chooses one",
    "-j": "leave it out: images are read, upscaled and written at the same time anyway",
    "-m": "name the file itself: --weights FOLDER/FILE",
    "--model_path": "give --weights FILE",
    "--model_name": "give --weights NAME, or -n NAME",
    "-z": "leave it out: the weights' scale is read from their file, or told by --scale",
    "-r": "give --width and --height",
    "-w": "give --width",
    "-v": "leave it out: progress is shown unless there is --quiet",
    "--ext": "give --format, or -f",
    "--fp32": "give --precision fp32",
    "-dn": f"give other weights: {DENOISING}",
    "--denoise_strength": f"give other weights: {DENOISING}",
    "--face_enhance": "there is no such network here",
    "--alpha_upsampler": "leave it out: alpha goes through the network, too",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="test.py", description="Upscale images with a trained generator.", allow_abbrev=False
    )
    parser.add_argument(
        "input",
        nargs="*",
        type=a_path,
        metavar="INPUT",
        help="images, folders, which are searched in depth, and patterns such as photos/*.jpg",
    )
    parser.add_argument(
        "-i",
        "--input",
        nargs="+",
        action="extend",
        type=a_path,
        dest="named",
        metavar="INPUT",
        default=[],
        help="more of them",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=a_path,
        default=Path("results"),
        help="a folder, or for one image the file to write: out.png (default: results)",
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing but what went wrong")
    add_network_flags(parser.add_argument_group("the network"))
    add_result_flags(parser.add_argument_group("the results"))
    add_score_flags(parser.add_argument_group("how good they are"))
    for flag in ELSEWHERE:
        nothing = argparse.SUPPRESS
        parser.add_argument(flag, nargs="?", action=Elsewhere, default=nothing, help=nothing)
    arguments = parser.parse_intermixed_args()  # inputs may stand before and behind flags
    arguments.input += vars(arguments).pop("named")
    if wrong := contradiction(arguments):
        parser.error(wrong)
    return arguments


class Elsewhere(argparse.Action):
    """A flag of `ELSEWHERE`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> NoReturn:
        flag = self.option_strings[0]
        parser.error(f"argument {flag}: not a flag here; {ELSEWHERE[flag]}")


def contradiction(arguments: argparse.Namespace) -> str:
    """What does not go together, in words; mostly empty."""
    if not arguments.input:
        missing = "what is to be upscaled is missing: an image, a folder, or a pattern"
        before = "it stands before --metrics, which takes all that follows"
        return f"{missing}; {before}" if arguments.metrics else missing
    if arguments.width or arguments.height:
        if arguments.outscale:
            return "--width and --height take the place of --outscale (-s); leave one out"
        if arguments.hr or arguments.metrics:
            return (
                "scores are of one scale for all images: give --outscale, not --width or --height"
            )
    if arguments.skip_existing and (arguments.report or arguments.hr or arguments.metrics):
        return (
            "--report, --hr and --metrics tell of what is upscaled in the same call: leave out "
            "--skip-existing, or the three"
        )
    if arguments.check_tiles and arguments.quiet:
        return "--check-tiles says what it finds, which --quiet hides: leave one out"
    if arguments.check_tiles and arguments.tile == 0:
        return "--check-tiles tells what tiles change, and --tile 0 makes none: leave one out"
    return contradiction_of_engine(arguments)


def contradiction_of_engine(arguments: argparse.Namespace) -> str:
    device = arguments.device
    if arguments.engine != "ncnn":
        return "--device vulkan needs --engine ncnn" if device == "vulkan" else ""
    if device in ("cuda", "mps"):
        return f"--engine ncnn computes on the CPU, or with --device vulkan, not on {device}"
    if arguments.precision == "bf16":
        return "--engine ncnn computes in fp32; leave out --precision bf16"
    if arguments.batch > 1:
        return "--engine ncnn computes one tile at a time; leave out --batch"
    return ""


def add_network_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-n",
        "--weights",
        type=not_empty,
        metavar="FILE|NAME",
        help="a generator's file, or a name: of one in the box, such as compact_x4_gan, or of a "
        "published one, such as RealESRGAN_x4plus, which is downloaded; default: what train.py "
        "wrote last, or else the one for photographs in the box",
    )
    group.add_argument("--scale", type=int, help="3, for weights whose file cannot tell x3 from x2")
    group.add_argument(
        "-x",
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
    group.add_argument(
        "--engine",
        choices=("torch", "ncnn"),
        default="torch",
        help="what computes; ncnn (pip install ncnn) is for CPUs, and GPUs of all makers",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cuda", "mps", "cpu", "vulkan"),
        default="auto",
        help="vulkan, a GPU with Vulkan, is of --engine ncnn, whose auto is the CPU",
    )
    group.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="default: auto, bf16 for 8-bit images on NVIDIA GPUs from Ampere on and on Linux on "
        "CPUs that have it (how far it is from fp32: docs/claims.md); of ncnn, fp32",
    )


def add_result_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-s",
        "--outscale",
        type=positive(float),
        metavar="S",
        help="enlarge S times, by MATLAB's bicubic from the network's own scale",
    )
    for side in ("width", "height"):
        group.add_argument(
            f"--{side}",
            type=positive(int),
            metavar="N",
            help=f"enlarge to this {side} in pixels; one of the two keeps the ratio, both give "
            "exactly that size",
        )
    group.add_argument(
        "--wrap",
        action="store_true",
        help="for seamless textures: opposite borders of the result fit together as the input's",
    )
    group.add_argument(
        "--keep-hidden",
        action="store_true",
        help="for textures: enlarge the colour under alpha 0, which otherwise is made up",
    )
    group.add_argument(
        "-f",
        "--format",
        choices=("png", "jpg", "webp", "tif", "same"),
        help="PNG, the default, keeps alpha and 16 bits; same is the input's",
    )
    group.add_argument("--suffix", type=part_of_name, default="", help="goes behind each name: _x4")
    group.add_argument("--skip-existing", action="store_true", help="go on where it stopped")
    add_file_flags(group)


def add_file_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--quality", type=quality, metavar="N", help="of JPEG and lossy WebP, 1 to 100; default: 95"
    )
    group.add_argument(
        "--strip-metadata",
        action="store_true",
        help="leave out EXIF data, comments and such; the colour profile stays",
    )
    group.add_argument(
        "--first-frame", action="store_true", help="of animations and of several pages, only that"
    )
    group.add_argument(
        "--keep-time", action="store_true", help="give results the times of their originals"
    )


def add_score_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--compare", action="store_true", help="strips beside bicubic, in compare/")
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
