"""Files of tensors, whoever wrote them: read without running code, refused if damaged."""

import io
import json
import pickle
import re
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

# What is left out where weights stand beside it, by the names that a pickle asks for. None of it is
# ever run: getattr and getitem are how methods (mmengine's) and types such as Dict[str, int] are
# pickled, and those that stand for them give nothing.
BESIDE = re.compile(
    r"(mmengine|mmcv|numpy|omegaconf|argparse|pathlib|datetime|typing)\..+"
    r"|builtins\.(getattr|object|type|bool|int|float|str|bytes|list|tuple|dict|frozenset|range|slice)"
    r"|_operator\.getitem|types\.GenericAlias|collections\.(defaultdict|deque)"
    r"|torch\.torch_version\.TorchVersion"
)
FILLED: dict[str, Callable[..., object]] = {  # torch adds items to plain dicts and lists only
    "collections.defaultdict": lambda *_: {},
    "collections.deque": lambda *_: [],
}
MOST_BESIDE = 50  # such names: a file of the older format is read again for each
LOADING = threading.Lock()
LARGEST_HEADER = 100_000_000  # bytes that safetensors' own reader takes


class UnreadableError(ValueError):
    """A file of weights that cannot be read; the message is the reason, "it is cut short"."""


def load_tensors(path: str | Path) -> tuple[object, dict[str, str]]:
    """What torch.save or safetensors wrote, whatever the file is called, onto the CPU.

    No code that a pickle may hold is run.

    Returns:
        The content, and the metadata of a safetensors file ({} of others).

    Raises:
        UnreadableError: anything else, or a damaged file.
    """
    start = b""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
        if not _begins_safetensors(start) and (complaint := _complaint(start)):
            raise UnreadableError(complaint)
        return _load_safetensors(path) if start[8:9] == b"{" else (_load_pickle(path), {})
    except UnreadableError:
        raise
    except Exception as error:  # a damaged file fails in a dozen ways, all of them the file's
        raise UnreadableError(_reason(error, start)) from error


def _begins_safetensors(start: bytes) -> bool:
    """By the length of the header, whose bytes may be those of any text, and what follows it."""
    return int.from_bytes(start[:8], "little") <= LARGEST_HEADER and start[8:9] == b"{"


def _load_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    content = Path(path).read_bytes()  # its own functions open no path that is not UTF-8
    tensors = safetensors.torch.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, header.get("__metadata__") or {}


def safetensors_file(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file's content; its own writer puts metadata into a random order.

    Equal weights make equal files.
    """
    content = safetensors.torch.save(tensors, metadata)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors have to start at a multiple of 8
    return len(encoded).to_bytes(8, "little") + encoded + content[start:]


def pth_file(content: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _load_pickle(path: str | Path) -> object:
    with open(path, "rb") as file:  # given the path, newer torch goes by the suffix
        if file.read(2) == b"PK":
            _check_zip(path)
        return _load_without_the_rest(file)


def _load_without_the_rest(file: BinaryIO) -> object:
    """What torch.load gives, with stand-ins for what is `BESIDE` the weights.

    Training programs save histories, settings and scores along with them.
    """
    stand_ins: dict[str, Callable[..., object]] = {}
    while True:
        file.seek(0)
        allowed: list[Any] = [(stand_in, name) for name, stand_in in stand_ins.items()]
        try:
            # Torch's list is one for the whole process, and each thread would shorten another's.
            with LOADING, torch.serialization.safe_globals(allowed):
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            new = set(filter(BESIDE.fullmatch, _refused(file, str(error)))) - stand_ins.keys()
            if not new or len(stand_ins) + len(new) > MOST_BESIDE:
                raise
            stand_ins |= {name: FILLED.get(name, NotRead) for name in new}


def _refused(file: BinaryIO, message: str) -> set[str]:
    """The functions and classes that torch will not let a file have, by their names.

    All of them where it is a zip file; of the older format the one that the message tells. There,
    trying again costs little: tensors come last.
    """
    file.seek(0)
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # of the older format, or damaged
        return {_asked_for(message)}


def _asked_for(message: str) -> str:
    """The function or class that torch will not let a file have; empty if that is not the error."""
    found = re.search(r"GLOBAL (\S+)", message)
    if not found:
        return ""
    return found[1] if "." in found[1] else f"builtins.{found[1]}"  # newer torch leaves that out


class NotRead:
    """Stands for an object beside the weights: it takes any arguments and state, and keeps none."""

    def __init__(self, *_: object, **__: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _check_zip(path: str | Path) -> None:
    """Refuse a zip file that is damaged; torch would load other numbers from it, or another format.

    Raises:
        EOFError: it is cut short.
        UnreadableError: an entry is not what its checksum says.
    """
    if not zipfile.is_zipfile(path):
        raise EOFError
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if not any(name.endswith(("data.pkl", "constants.pkl")) for name in names):
                raise UnreadableError(f"it is an archive of {', '.join(names[:3])}; unpack it")
            for entry in archive.infolist():
                _check_entry(archive, entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise UnreadableError(f"it is damaged ({error}); get it again") from error


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    if entry.external_attr & 0x10 and entry.file_size:  # torch would read nothing into its tensor
        raise zipfile.BadZipFile(f"{entry.filename} is marked as a folder")
    if entry.CRC == 0:  # left out, by torch.serialization.set_crc32_options(False)
        return
    with archive.open(entry) as file:
        while file.read(2**20):  # the checksum is compared at the end
            pass


def _complaint(start: bytes) -> str:
    """What a file that begins like this is instead of weights; empty if it may hold some."""
    if not start:
        return "it is empty; get it again"
    if start.lstrip().startswith(b"<"):
        return "it is a web page; download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "it only points at the file in Git LFS; run `git lfs pull`"
    if start.startswith((b"7z\xbc\xaf", b"Rar!")):
        return "it is an archive; unpack it"
    return ""


def _reason(error: Exception, start: bytes) -> str:
    text = str(error)
    if "TorchScript" in text:
        return "it is a TorchScript program, which can carry code; save its state_dict instead"
    if isinstance(error, pickle.UnpicklingError):
        if name := _asked_for(text):
            refusal = f"it asks to run code ({name}), which is refused"
            return f"{refusal}; save the network's state_dict() instead, which needs none"
        if start.startswith((b"PK", b"\x80")):
            return "it is pickled in a way that is not read; save the network's state_dict() alone"
        return "torch.save did not write it"
    if "legacy .tar" in text:
        return "torch.save has not written such files since 2017"
    cut_short = (
        *("central directory", "incomplete", "invalid header", "truncated"),
        "Ran out of input",
    )
    if isinstance(error, EOFError) or any(sign in text for sign in cut_short):
        return "it is cut short; get it again"
    return text.splitlines()[0] if text else type(error).__name__
