"""One process at a time: who packs a folder, who trains a run."""

import errno
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from utils import naming

if sys.platform != "win32":
    import fcntl


@contextmanager
def locked(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Be the only process in the block, among all that name the same `path`.

    Where the file system has no locks, as on some clusters, a file beside `path` stands for one. It
    stays when its process is killed on another machine, so who wrote it is told.

    Args:
        path: the lock's file, which stays there.
        busy: called where another process has it, with what is known of that one: nothing, or
            " (process 12 on node7, since ...)". It raises, or returns to wait for the lock.

    Raises:
        WriteError: the lock's file cannot be made.
    """
    marker = path.with_name(f"{path.name}.held")
    with naming(path, marker):
        native = has_locks(path.parent)
        # Of no content, and for all users, whatever their umask.
        lock: BaseFileLock = FileLock(path, mode=0o666) if native else SoftFileLock(marker)
        try:
            lock.acquire(timeout=0.2)  # some tries: the first may find what a dead process left
        except Timeout:
            busy("" if native else holder(marker))
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def has_locks(folder: Path) -> bool:
    """Whether the file system knows flock: tried on a file that nobody else has."""
    if sys.platform == "win32":
        return True
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS):
            return False
        raise OSError(error.errno, error.strerror) from error  # not with the file's random name
    return True


def holder(path: Path) -> str:
    """Whose a SoftFileLock is, and what to do if that process is gone."""
    try:
        pid, host, *_ = [*path.read_text().split(), "?", "?"]
        since = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    except OSError:  # let go at this moment
        return ""
    return f" (process {pid} on {host}, since {since}; if it is gone, delete {path})"
