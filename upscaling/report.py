"""A page that compares results with bicubic: index.html, and its pictures in index_files/.

It needs no server and no network. The page itself is report.html, into which the data goes.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image
from tqdm import tqdm

from images.files import write_image
from images.filetypes import JPEG
from images.names import fitting
from upscaling.inputs import UsageError
from utils import printable, replacing

TEMPLATE = Path(__file__).with_name("report.html")
PAGE, TABLE, PICTURES = "index.html", "metrics.csv", "index_files"
THUMBNAIL = 360  # pixels of its longer side
LARGEST = JPEG.side  # pixels of the page's pictures, each way
LABELS = ("bicubic", "ours", "HR")  # of an image's pictures, in the order of the page


def page_image(folder: Path, name: Path, size: tuple[int, int]) -> "PageImage | None":
    """None for a picture that is too large for the page's JPEG files, which is said."""
    if max(size) <= LARGEST:
        return PageImage(folder, name)
    tqdm.write(printable(f"{name} is not on the page, which holds {LARGEST} pixels a side"))
    return None


class PageImage:
    """One image of the page: its pictures, written one after the other, and its entry.

    Args:
        folder: where index.html will be.
        name: of the image, relative, unique.
    """

    def __init__(self, folder: Path, name: Path):
        self.folder, self.name = folder, name
        self.size = (0, 0)
        self.addresses: dict[str, str] = {}

    def add(self, label: str, picture: np.ndarray) -> None:
        """Write a picture: uint8, all of one size; "bicubic", "ours" and perhaps "HR"."""
        self.addresses[label] = self._write(f".{label}.jpg", picture)
        if label == "ours":
            thumb = Image.fromarray(picture)
            thumb.thumbnail((THUMBNAIL, THUMBNAIL))
            self.addresses["thumb"] = self._write(".jpg", np.asarray(thumb))
            self.size = picture.shape[:2]

    def _write(self, ending: str, picture: np.ndarray) -> str:
        """Returns the address, relative to the page."""
        file = Path(PICTURES) / self.name.with_name(self.name.name + ending)
        file = file.with_name(fitting(self.folder / file).name)
        write_image(picture, self.folder / file)
        return quote(os.fsencode(file.as_posix()))

    def entry(self, score: dict[str, float]) -> dict:
        """For `write_page`, once all pictures are there; `score`: numbers to show, perhaps none."""
        files = {key: self.addresses[key] for key in LABELS if key in self.addresses}
        height, width = self.size
        name = printable(self.name.as_posix())
        entry = dict(name=name, width=width, height=height, thumb=self.addresses["thumb"])
        return entry | dict(files=files, score=score)


def refuse_among_pictures(targets: Iterable[Path], folder: Path) -> None:
    """
    Args:
        targets: files of results.
        folder: where index.html will be.

    Raises:
        UsageError: one of them would lie among the page's pictures, and perhaps replace one.
    """
    for target in targets:
        if target.relative_to(folder).parts[0].casefold() == PICTURES:
            raise UsageError(
                f"{target} would lie among the page's own pictures: leave out --report, or name "
                "the images without those of an earlier page"
            )


def refuse_foreign_page(folder: Path) -> None:
    """Before the work, where the page would replace somebody else's file.

    Raises:
        UsageError: so it is.
    """
    page = folder / PAGE
    if not os.path.isfile(page):
        return
    template = TEMPLATE.read_text("utf-8")
    title = template[template.index("<title>") : template.index("</title>")]
    if title not in _content_of(page):
        raise UsageError(f"{page} is no page of --report, and stays; choose another folder with -o")


def refuse_foreign_table(folder: Path) -> None:
    """The same of the table of scores.

    Raises:
        UsageError: so it is.
    """
    table = folder / TABLE
    if not os.path.isfile(table):
        return
    columns = _content_of(table).partition("\n")[0]
    if not (columns.startswith("image,") and "bicubic_" in columns):
        raise UsageError(f"{table} is no table of scores, and stays; choose another folder with -o")


def _content_of(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def write_page(folder: Path, images: list[dict], summary: str) -> Path:
    """Write index.html; `summary` stands at its top, the images in the order of their names."""
    images = sorted(images, key=lambda image: image["name"])
    scores = [image["score"] for image in images if image["score"]]
    columns = list(scores[0]) if scores else []
    mean = _plain({key: float(np.mean([score[key] for score in scores])) for key in columns})
    images = [image | {"score": _plain(image["score"])} for image in images]
    data = dict(summary=printable(summary), images=images, columns=columns, mean=mean)
    # A name could end the script element early.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    path = folder / PAGE
    with replacing(path) as file:
        file.write(TEMPLATE.read_text("utf-8").replace("__DATA__", text).encode())
    return path


def _plain(score: dict[str, float]) -> dict[str, float | str] | None:
    """JSON has no infinity, which is that of equal images, and no NaN."""
    words = {math.inf: "equal"}
    return {k: v if math.isfinite(v) else words.get(v, str(v)) for k, v in score.items()} or None
