"""A page that compares results with bicubic: index.html, and its pictures in index_files/.

It needs no server and no network. The page itself is report.html, into which the data goes.
"""

import json
import math
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from images.files import write_image

TEMPLATE = Path(__file__).with_name("report.html")
THUMBNAIL = 360  # pixels of its longer side


def add_to_page(
    folder: Path, name: Path, pictures: dict[str, np.ndarray], score: dict[str, float]
) -> dict:
    """Write an image's pictures for the page in `folder`.

    Args:
        folder: where index.html will be.
        name: of the image, relative, unique.
        pictures: uint8, of one size: "bicubic", "ours" and perhaps "HR".
        score: numbers to show; may be empty.

    Returns:
        The image's entry for `write_page`.
    """
    height, width = pictures["ours"].shape[:2]
    stem = Path("index_files") / name
    files = {label: stem.with_name(f"{name.name}.{label}.jpg") for label in pictures}
    for label, picture in pictures.items():
        write_image(picture, folder / files[label])
    thumb = Image.fromarray(pictures["ours"])
    thumb.thumbnail((THUMBNAIL, THUMBNAIL))
    files["thumb"] = stem.with_name(f"{name.name}.jpg")
    write_image(np.asarray(thumb), folder / files["thumb"])
    addresses = {label: quote(path.as_posix()) for label, path in files.items()}
    entry = dict(name=name.as_posix(), width=width, height=height, thumb=addresses.pop("thumb"))
    return entry | dict(files=addresses, score=_plain(score))


def write_page(folder: Path, images: list[dict], summary: str) -> Path:
    """Write index.html; `summary` stands at its top, the images in the order of their names."""
    images = sorted(images, key=lambda image: image["name"])
    scores = [image["score"] for image in images if image["score"]]
    columns = list(scores[0]) if scores else []
    finite = {key: [s[key] for s in scores if s[key] is not None] for key in columns}
    mean = {key: float(np.mean(values)) if values else math.inf for key, values in finite.items()}
    data = dict(summary=summary, images=images, columns=columns, mean=_plain(mean))
    # A name could end the script element early.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    path = folder / "index.html"
    path.write_text(TEMPLATE.read_text("utf-8").replace("__DATA__", text), "utf-8")
    return path


def _plain(score: dict[str, float]) -> dict[str, float | None] | None:
    """JSON has no infinity: None stands for that of equal images."""
    return {key: value if math.isfinite(value) else None for key, value in score.items()} or None
