"""The command line of weights.py. Nothing here needs torch, which takes seconds to import."""

import argparse

from upscaling.arguments import a_path, not_empty

SUFFIXES = {  # what can be written -> the kinds of file it is written to
    "basicsr": (".safetensors", ".pth"),
    "official": (".safetensors", ".pth"),
    "old": (".safetensors", ".pth"),
    "onnx": (".onnx",),
    "ncnn": (".param", ".bin"),
}
ALPHAS = (0, 0.2, 0.4, 0.6, 0.8, 1)  # of --pictures


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="weights.py", description="Convert, interpolate and describe ESRGAN generators."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="write a generator in another layout")
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
    about = commands.add_parser("describe", help="what a file is")
    about.add_argument("--openmodeldb", action="store_true", help="as that site's JSON")
    for command in (convert, about):
        command.add_argument(
            "inputs", nargs=1, type=not_empty, metavar="WEIGHTS", help="a file or a name"
        )
    for command in (convert, mix, about):
        command.add_argument("--scale", type=int, help="3, where the file cannot tell x3 from x2")
    for command in (convert, mix):
        command.add_argument("-o", "--output", type=a_path, metavar="OUT", help="the file to write")
        command.add_argument("--to", choices=SUFFIXES, default="basicsr")
        command.add_argument("--half", action="store_true", help="fp16: half the size")
    arguments = parser.parse_args()
    if arguments.command == "describe":
        return arguments
    pictures = arguments.command == "interpolate" and arguments.pictures
    if not pictures and arguments.output is None:
        parser.error("-o OUT is missing: the file to write")
    if arguments.half and arguments.to == "ncnn":
        parser.error("--half is for other files: ncnn's are fp16 in any case")
    if pictures and (arguments.half or arguments.to != "basicsr"):
        parser.error("--half and --to are for the network, which --pictures does not write")
    if arguments.command == "interpolate" and not pictures:
        if arguments.hr:
            parser.error("--hr DIR goes with --pictures PHOTOS")
        if len(arguments.alpha or ()) != 1:
            parser.error("give one --alpha for the network, or --pictures PHOTOS to see several")
    return arguments
