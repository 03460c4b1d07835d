"""The command line of app.py. Nothing here needs torch or gradio, which take seconds to import."""

import argparse
from importlib.util import find_spec

from upscaling.arguments import not_empty, port


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="app.py", description="Upscale pictures on a page of this machine.", allow_abbrev=False
    )
    parser.add_argument(
        "--port", type=port, metavar="N", help="of the page; default: the first free one from 7860"
    )
    parser.add_argument(
        "--weights",
        type=not_empty,
        metavar="FILE|NAME",
        help="the network that the page begins with; default: what train.py wrote last, or else "
        "the one for photographs in the box",
    )
    arguments = parser.parse_args()
    if find_spec("gradio") is None:
        parser.exit(2, "app.py: gradio, which makes the page, is missing: pip install gradio\n")
    return arguments
