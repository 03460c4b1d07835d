"""What a file of weights is, in words, and as OpenModelDB's JSON."""

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from formats.finding import Found
from formats.layouts import WeightsError, layout_of
from formats.ncnn import pair_of

ARCHITECTURES = {"RRDBNet": "esrgan", "ESRGAN+": "esrgan+", "SRResNet": "sr-res-net"}
WORDS = {  # for arguments of networks
    "in_channels": "channels in",
    "out_channels": "channels out",
    "plus": "ESRGAN+",
    "batch_norm": "batch norm",
}
TO_FILL_IN = "author, license, tags, description and urls, and see to name and date"


class Description(NamedTuple):
    """A generator in a file.

    files: its own, two of ncnn's; found: its tensors, as they are in there; network, arguments: the
    kind of network, and what it is built with; metadata: what the file says of it.
    """

    files: tuple[Path, ...]
    found: Found
    network: str
    arguments: dict[str, Any]
    parameters: int
    metadata: dict[str, str]

    def lines(self) -> list[str]:
        """A line for each fact."""
        facts: list[tuple[str, Any]] = []
        for path in self.files:
            facts.append(("file", f"{path} ({path.stat().st_size:,} bytes)"))
            facts.append(("SHA-256", sha256(path)))
        facts += [("layout", self.layout), ("found at", self.found.place)]
        facts += [("averaged", self.averaged), ("network", self.network)]
        facts += [(WORDS.get(name, name), value) for name, value in self.arguments.items()]
        facts.append(("parameters", f"{self.parameters:,}"))
        dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in self.found.state.values()}
        facts.append(("dtype", " and ".join(sorted(dtypes))))
        facts += [("metadata", f"{name}: {value}") for name, value in self.metadata.items()]
        width = max(len(name) for name, _ in facts)
        return [f"{name:<{width}}  {value}" for name, value in facts]

    @property
    def layout(self) -> str:
        if len(self.files) > 1:
            return "ncnn"
        return layout_of(self.found.state) or "train.py's"

    @property
    def averaged(self) -> str:
        """Whether it is the moving average (EMA) of a network in training."""
        if self.found.averaged:
            return "yes" if self.found.averaged > 0 else "no"
        decay = self.config.get("ema_decay")
        return f"yes, by train.py with decay {decay}" if decay else "not said"

    @property
    def config(self) -> dict[str, Any]:
        """The settings that train.py puts into a generator's metadata; of other files {}."""
        try:
            config = json.loads(self.metadata.get("config", "{}"))
        except ValueError:
            return {}
        return config if isinstance(config, dict) else {}


def openmodeldb(described: Description) -> dict[str, Any]:
    """An entry of https://openmodeldb.info: a file of data/models/ in its repository.

    The fields are those of `Model` and `ExtraModelProperties`, src/lib/schema.ts of
    OpenModelDB/open-model-database; what a file cannot tell is left empty (TO_FILL_IN).

    Raises:
        WeightsError: a pair of ncnn's, of which the site has no kind.
    """
    path, *others = described.files
    if others:
        raise WeightsError(f"{path}: OpenModelDB lists no ncnn files; describe what it came from")
    arguments = described.arguments
    network = "ESRGAN+" if arguments.get("plus") else described.network
    return {
        "name": path.stem,
        "author": "",
        "license": None,
        "tags": [],
        "description": "",
        "date": datetime.date.today().isoformat(),
        "architecture": ARCHITECTURES[network],
        "size": [f"{arguments['features']}nf", f"{arguments['blocks']}nb"],
        "scale": arguments["scale"],
        "inputChannels": arguments["in_channels"],
        "outputChannels": arguments["out_channels"],
        "resources": [
            {
                "platform": "pytorch",
                "type": "safetensors" if path.suffix == ".safetensors" else "pth",
                "size": path.stat().st_size,
                "sha256": sha256(path),
                "urls": [],
            }
        ],
        **_training(described),
        "images": [],
    }


def _training(described: Description) -> dict[str, int]:
    """What train.py tells of the last phase."""
    config, step = described.config, described.metadata.get("step", "")
    phase = config.get(described.metadata.get("phase", ""), {})
    told = {
        "trainingIterations": int(step) if step.isdecimal() else 0,
        "trainingBatchSize": config.get("batch_size", 0),
        "trainingHRSize": phase.get("patch", 0),
    }
    return {name: number for name, number in told.items() if number}


def files_of(path: Path) -> tuple[Path, ...]:
    """The file, or the two that it is one of."""
    return pair_of(path) or (path,)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
