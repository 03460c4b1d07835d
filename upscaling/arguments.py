"""What a command line's words can be; anything else ends in argparse's message and status 2."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

OVERLAP = 32  # input pixels that neighbouring tiles share at least
SMALLEST_TILE = 2 * OVERLAP


def not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def a_path(text: str) -> Path:
    if sys.platform == "win32" and '"' in text:
        raise argparse.ArgumentTypeError(
            f"{text!r}: a backslash before a closing quote takes what follows into the name; "
            "leave the backslash out"
        )
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


def port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, a number from 1 to 65535")
    return int(text)


def quality(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 100")
    return int(text)
