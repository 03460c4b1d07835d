"""Names of files that are made from other names, and may become too long."""

import ctypes
import hashlib
import os
import sys
import unicodedata
from pathlib import Path

from utils import nearest

LONGEST_TEMPORARY = 38  # characters of the file that `replacing` writes at first
PACKED = "esrgan-packed"  # how the names of packs of images begin


def composed(name: str) -> str:
    """Letters with marks as one character each: a Mac may write two, and other systems one."""
    return unicodedata.normalize("NFC", name)


def name_length(name: str) -> int:
    """As file systems count: UTF-16 units on Windows, bytes elsewhere."""
    if sys.platform == "win32":
        return len(name.encode("utf-16-le", "surrogatepass")) // 2
    return len(os.fsencode(name))


def longest_name(folder: Path) -> int:
    """The largest `name_length` that a file in `folder` may have: 255, or 143 on eCryptfs.

    On Windows a whole path has 259 at most, unless its long paths are turned on.
    """
    if sys.platform == "win32" and not ctypes.windll.ntdll.RtlAreLongPathsEnabled():
        room = 258 - name_length(os.path.abspath(folder))  # behind a backslash
        return min(255, room) if room >= LONGEST_TEMPORARY else 0
    try:
        limit = os.pathconf(nearest(folder), "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows has no such call
        limit = -1
    return limit if limit > 0 else 255


def fitting(path: Path) -> Path:
    """The path; where its name is too long, with one that is `shortened`."""
    return path.with_name(shortened(path.name, longest_name(path.parent)))


def shortened(name: str, limit: int) -> str:
    """The name, or if its `name_length` is above `limit` one that no other name becomes."""
    if name_length(name) <= limit:
        return name
    suffix = Path(name).suffix
    ending = f"~{digest(name)}{suffix if len(suffix) < 12 else ''}"
    while name and name_length(name + ending) > limit:
        name = name[:-1]
    return name + ending


def flat_stem(name: str | Path) -> str:
    """A path inside of a folder as one file name, without suffix: sub_d of sub/d.png."""
    return Path(name).with_suffix("").as_posix().replace("/", "_")


def digest(name: str) -> str:
    """A name in 8 characters."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
