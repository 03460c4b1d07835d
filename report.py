"""A page that compares results with bicubic: index.html, and its pictures in index_files/.

It needs no server and no network. The page itself is report.html, into which the data goes.
"""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from pictures import write_image

TEMPLATE = Path(__file__).with_name("report.html")
THUMBNAIL = 360  # pixels of its longer side


class Report:
    """Collects images, and writes the page that shows them.

    Args:
        folder: where index.html and index_files/ go.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.images: list[dict] = []

    def add(self, name: str, pictures: dict[str, np.ndarray], score: dict[str, float]) -> None:
        """Write an image's pictures, uint8 of one size: "bicubic", "ours" and perhaps "HR"."""
        height, width = pictures["ours"].shape[:2]
        number = f"index_files/{len(self.images):05d}"
        files = {label: f"{number}_{label}.jpg" for label in pictures}
        for label, picture in pictures.items():
            write_image(picture, self.folder / files[label])
        small = Image.fromarray(pictures["ours"])
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        write_image(np.asarray(small), self.folder / f"{number}.jpg")
        image = dict(name=name, width=width, height=height, thumb=f"{number}.jpg", files=files)
        self.images.append(image | {"score": _plain(score)})

    def write(self, summary: str) -> Path:
        """Write the page; `summary` stands at its top."""
        scores = [image["score"] for image in self.images if image["score"]]
        columns = list(scores[0]) if scores else []
        finite = {key: [s[key] for s in scores if s[key] is not None] for key in columns}
        mean = {
            key: float(np.mean(values)) if values else math.inf for key, values in finite.items()
        }
        data = dict(summary=summary, images=self.images, columns=columns, mean=_plain(mean))
        # A name could end the script element early.
        text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
        path = self.folder / "index.html"
        path.write_text(TEMPLATE.read_text("utf-8").replace("__DATA__", text), "utf-8")
        return path


def _plain(score: dict[str, float]) -> dict[str, float | None] | None:
    """JSON has no infinity: None stands for that of equal images."""
    return {key: value if math.isfinite(value) else None for key, value in score.items()} or None
