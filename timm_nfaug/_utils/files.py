"""Files that are written whole or not at all, and directories for one process at a time."""

import contextlib
import errno
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .notices import warn

_logger = logging.getLogger(__name__)
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of a file system that knows none


def make_directory(path: Path) -> None:
    """Makes a directory and its parents where there is none yet.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     make_directory(Path(folder, "a", "b"))
    """
    if path.is_file():
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is a file; name a directory")
    path.mkdir(parents=True, exist_ok=True)


def write_atomically(
    path: Path, write: Callable[[Path], Any], durable: bool = True, scratch: Path | None = None
) -> None:
    """Calls `write` with a temporary path, then renames: a reader sees the old file or the new one.

    Args:
        durable: flush the file to the disk first, so that this holds through a power cut, and
            remove temporary files of killed processes. False is many times faster for thousands of
            small files.
        scratch: directory on the same disk for the temporary file, by default that of the file.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder, "new", "a.txt"), lambda p: p.write_text("hello"))
    ...     Path(folder, "new", "a.txt").read_text()
    'hello'

    Raises:
        OSError: the file could not be written; the old one is as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            remove_leftovers(path.parent, path.name)
        prefix = f".{path.name}.{socket.gethostname()}-{os.getpid()}."
        fd, temporary = tempfile.mkstemp(dir=scratch or path.parent, prefix=prefix)
        os.close(fd)
        try:
            write(Path(temporary))
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide the file from others
            if durable:
                _flush(temporary)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        if durable and os.name == "posix":  # the new name, too
            _flush(str(path.parent))
    except OSError as e:
        reason = e.strerror or str(e)
        raise OSError(e.errno, f"cannot write {path}: {reason}; nothing there was changed") from e


def _flush(name: str) -> None:
    fd = os.open(name, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_leftovers(directory: Path, name: str = "") -> None:
    """Removes temporary files, of `name` or of all, whose writers on this machine have ended.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     left = Path(folder, f".a.txt.{socket.gethostname()}-{2**22 + 1}.x")  # no process's number
    ...     left.touch()
    ...     remove_leftovers(Path(folder))
    ...     left.exists()
    False
    """
    for found in os.listdir(directory):
        start, mark, rest = found.rpartition(f".{socket.gethostname()}-")
        pid = rest.partition(".")[0]
        own = mark and start.startswith(".") and name in ("", start[1:])
        if own and pid.isdigit() and not _lives(int(pid)):
            (directory / found).unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    if os.name == "posix":  # elsewhere signal 0 would end the process
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # somebody else's
            pass
    return True


class InUseError(OSError):
    """Says that another process works in a directory, and which one.

    >>> issubclass(InUseError, OSError)
    True
    """


@contextlib.contextmanager
def locked(
    directory: Path, wait: bool = True, meanwhile: Callable[[], Any] | None = None
) -> Iterator[None]:
    """Lets one process at a time into a directory; a killed one leaves no lock behind.

    Args:
        wait: until the other process is done; else raise an `InUseError` that names it.
        meanwhile: is called twice a second while it waits.

    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
    ...     os.listdir(folder)
    ['.lock']
    """
    path = Path(directory) / ".lock"
    with open(path, "a+", encoding="utf-8") as f:
        _lock(f, path, wait, meanwhile)
        f.truncate(0)
        who = f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}: {_command()}"
        with contextlib.suppress(OSError):  # a full disk holds the lock, if not its holder's name
            os.write(f.fileno(), who.encode())
        _held.add(f)
        try:
            yield
        finally:
            _held.discard(f)
            f.truncate(0)


_held: set[Any] = set()  # the lock files of this process


def _close_in_child() -> None:
    """Closes them in a forked process: a worker must not hold the lock of a killed one."""
    while _held:
        _held.pop().close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _lock(f: Any, path: Path, wait: bool, meanwhile: Callable[[], Any] | None) -> None:
    try:
        import fcntl
    except ImportError:  # on Windows there is no fcntl, and no lock
        return
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        f.seek(0)
        holder = f.read() or "another process"
        if not wait:
            where = f"{path.parent} is in use by {holder}"
            raise InUseError(f"{where}; wait until it ends, or name another directory") from None
        _logger.info("waiting for %s, in use by %s", path.parent, holder)
        while meanwhile and _is_held(f):
            meanwhile()
            time.sleep(0.5)
        fcntl.flock(f, fcntl.LOCK_EX)
    except OSError as e:
        if e.errno not in _NO_LOCKS:
            raise
        where = f"{path.parent} is on a file system without locks"
        warn(f"{where}: see to it that one process at a time writes there")


def _is_held(f: Any) -> bool:
    """Whether another process holds a lock; else this one does now."""
    import fcntl

    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _command() -> str:
    return " ".join(" ".join(sys.orig_argv).split())[:200]  # on one line


def reserve(path: Path, size: int) -> None:
    """Makes a file of `size` bytes whose space on the disk is taken: writing to it cannot fail.

    Where the system cannot reserve, it looks at the free space alone.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     reserve(Path(folder, "a.bin"), 1000)
    ...     Path(folder, "a.bin").stat().st_size
    1000

    Raises:
        OSError: there is not enough room.
    """
    free = shutil.disk_usage(path.parent).free
    there = path.stat().st_size if path.exists() else 0
    needed = f"{path} takes {size / 1e9:.2f} GB"
    if size - there > free:
        raise OSError(
            errno.ENOSPC, f"{needed}, {free / 1e9:.2f} GB are free; free some, or name another disk"
        )
    new = not path.exists()
    with open(path, "w+b" if new else "r+b") as f:
        try:
            os.posix_fallocate(f.fileno(), 0, max(size, 1))
        except AttributeError:  # macOS, Windows
            f.truncate(size)
        except OSError as e:
            if e.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot
                f.truncate(size)
                return
            f.truncate(there)
            if new:
                path.unlink()
            raise OSError(e.errno, f"{needed}, which cannot be reserved: {e.strerror}") from e
