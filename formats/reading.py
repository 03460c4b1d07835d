"""A file of weights, whichever program wrote it."""

import os
from pathlib import Path

from formats.layouts import WeightsError
from formats.ncnn import load_ncnn, pair_of
from formats.published import known_names
from formats.tensors import UnreadableError, load_tensors


def read_weights(path: Path) -> tuple[object, dict[str, str]]:
    """What a file holds, and what it says of its generator.

    Raises:
        WeightsError: there is no such file, or it cannot be read.
    """
    if os.path.isdir(path):
        raise WeightsError(f"{path} is a folder; name a file in it")
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such file. {known_names()}")
    if path.suffix.lower() == ".onnx":
        raise WeightsError(f"{path} is ONNX, which is written but not read; give what it came from")
    try:
        pair = pair_of(path)
        content, metadata = load_ncnn(pair) if pair else load_tensors(path)
    except (UnreadableError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as weights: {error}") from error
    if isinstance(content, dict):
        config, told = content.get("config"), content.get("metadata")
        if isinstance(told, dict):  # as save_generator leaves it in a .pth
            metadata = told
        elif isinstance(config, dict):  # a last.pt
            metadata = {key: content[key] for key in ("phase", "step") if key in content}
    return content, {str(key): str(value) for key, value in metadata.items()}
