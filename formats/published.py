"""Generators by name: those in the box, and published ones, which are downloaded."""

import http.client
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from formats.layouts import WeightsError
from formats.others import ELSEWHERE

BOX = Path(__file__).resolve().parents[1] / "checkpoints"  # of the repository
DOWNLOADS = Path("checkpoints")
RUNS = Path("checkpoints")  # train.py has a folder for each
DEFAULT = "compact_x4_real"  # in the box, where nothing was trained yet
RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"
PUBLISHED = {  # name -> address, SHA-256 (or what is known of its beginning)
    "RealESRGAN_x4plus": (
        f"{RELEASES}/v0.1.0/RealESRGAN_x4plus.pth",
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
    ),
    "RealESRNet_x4plus": (
        f"{RELEASES}/v0.1.1/RealESRNet_x4plus.pth",
        "a820b9bde89a874d7599d545567308ce6c128fc8754a53208eda016d40aa81df",
    ),
    "ESRGAN_SRx4_DF2KOST_official-ff704c30": (
        f"{RELEASES}/v0.1.1/ESRGAN_SRx4_DF2KOST_official-ff704c30.pth",
        "ff704c30",
    ),
    "RealESRGAN_x2plus": (
        f"{RELEASES}/v0.2.1/RealESRGAN_x2plus.pth",
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
    ),
    "RealESRGAN_x4plus_anime_6B": (
        f"{RELEASES}/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth",
        "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
    ),
}
NCNN_NAMES = {  # of realesrgan-ncnn-vulkan -> of the same network
    "realesrgan-x4plus": "RealESRGAN_x4plus",
    "realesrnet-x4plus": "RealESRNet_x4plus",
    "realesrgan-x4plus-anime": "RealESRGAN_x4plus_anime_6B",
}
# Real-ESRGAN's names for networks of another kind, and realesrgan-ncnn-vulkan's.
COMPACT = re.compile(r"realesr-(animevideov3(-x[234])?|general(-wdn)?-x4v3)")
PATIENCE = 60  # seconds without a byte after which a download is given up
# Of torch.hub: no network; a wrong hash; a server that hangs up.
DOWNLOAD_ERRORS = (OSError, RuntimeError, http.client.HTTPException)


def in_the_box() -> dict[str, Path]:
    """Names and files of the generators that come with the repository."""
    return {path.stem: path for path in sorted(BOX.glob("compact_x4_*.safetensors"))}


def trained() -> list[Path]:
    """The generators that train.py wrote: the newest run's first, and of each run the GAN first.

    Times of the two do not tell which is the later phase's: copies may have equal ones.
    """
    runs: dict[Path, list[Path]] = {}
    for name in ("gan", "psnr"):
        for path in sorted(RUNS.glob(f"*/{name}.safetensors")):
            if path.is_file():  # and no link to what is gone
                runs.setdefault(path.parent, []).append(path)

    def newest(files: list[Path]) -> int:
        return max(path.stat().st_mtime_ns for path in files)

    return [path for files in sorted(runs.values(), key=newest, reverse=True) for path in files]


def networks() -> list[str]:
    """At hand without a download: what was trained here, then the box; the default comes first."""
    return [*dict.fromkeys([*map(str, trained()), DEFAULT, *in_the_box()])]


def known_names() -> str:
    """What can be named instead of a file, for messages."""
    return (
        f"Names that are in the box: {', '.join(in_the_box())}; "
        f"that are downloaded: {', '.join(PUBLISHED)}"
    )


def locate(path_or_name: str | Path) -> Path:
    """The file; a name is looked up, unless a file is called that.

    Published generators are downloaded unless they are in checkpoints/ already. Names may have
    their file's suffix.

    Raises:
        WeightsError: the name is of a network that is not computed here, or nothing came.
    """
    path, name = Path(path_or_name), str(path_or_name)
    if os.path.isfile(path):
        return path
    if own := in_the_box().get(name.removesuffix(".safetensors")):
        return own
    name = NCNN_NAMES.get(name, name.removesuffix(".pth"))
    if COMPACT.fullmatch(name):
        raise WeightsError(f"{name} is a network of SRVGGNetCompact, {ELSEWHERE}")
    if name not in PUBLISHED:
        return path
    target = DOWNLOADS / f"{name}.pth"
    if not target.exists():
        _download(name, target)
    return target


def _download(name: str, target: Path) -> None:
    url, sha256 = PUBLISHED[name]
    remedy = f"Or fetch {url} yourself and put it at {target}"
    print(f"Downloading {url}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with patience():
            torch.hub.download_url_to_file(url, str(target), sha256, progress=is_watched())
    except DOWNLOAD_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise WeightsError(f"{name} could not be downloaded ({reason}). {remedy}") from error


def is_watched() -> bool:
    """Whether there is a terminal for torch's bar of a download, which would fill a log."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))


@contextmanager
def patience() -> Iterator[None]:
    """Without it, torch.hub waits forever for a server that has gone silent."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
