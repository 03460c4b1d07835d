"""Where the packs of a folder are kept: in the folder itself, or under data/packs."""

import hashlib
import mmap
import os
import shutil
import tempfile
from pathlib import Path

from images.names import PACKED
from images.pairs import DataError
from utils import gigabytes, is_writable


def starts(folder: Path) -> tuple[Path, Path]:
    """How the paths of its packs begin: in the folder itself, and elsewhere."""
    whole = folder.resolve()
    identity = hashlib.sha256(str(whole).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    elsewhere = Path("data/packs") / f"{whole.name[:40]}-{identity}"
    return folder / PACKED, elsewhere / PACKED


def lock_of(folder: Path) -> Path | None:
    """The path of the lock under which the folder is packed; none where nothing can be written."""
    for start in starts(folder):
        lock = start.with_name(f".{start.name}.lock")
        # Another user's lock may be closed to this one.
        if is_writable(start.parent) and (not lock.exists() or os.access(lock, os.W_OK)):
            return lock
    return None


def place_for_pack(folder: Path, end: str, needed: int) -> Path:
    """The path for a new pack, where there is room for its bytes.

    Args:
        folder: of the images.
        end: of the pack's name.
        needed: bytes.

    Raises:
        DataError: there is none.
    """
    shortages = []
    for start in starts(folder):
        place = start.parent
        if not is_writable(place):
            shortages.append(f"{place} cannot be written to")
        elif (free := shutil.disk_usage(place).free) < needed:
            shortages.append(f"the disk of {place} has {gigabytes(free)} free")
        elif not maps_files(place):
            shortages.append(f"the drive of {place} maps no files into memory")
        else:
            if shortages:
                print(f"{shortages[0]}, so its pack goes to {place}")
            return start.with_name(f"{start.name}-{end}.bin")
    raise DataError(
        f"packing {folder} takes {gigabytes(needed)}, but {' and '.join(shortages)}. "
        "Make room, or make data/packs a link to another disk"
    )


def maps_files(folder: Path) -> bool:
    """Found by trying: some network drives, and FUSE's direct_io, refuse it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" ")  # an empty file can be mapped nowhere
            file.flush()
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).close()
    except OSError:
        return False
    return True


def packed_size(areas: list[int], scale: int) -> int:
    """Bytes that images of so many pixels take in a pack, each with a line in the index."""
    return sum(3 * area * (scale**2 + 1) // scale**2 + 300 for area in areas)
