"""Files that are written whole or not at all, and directories for one process at a time."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary path, then renames: a reader sees the old file or the new one.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder, "new", "a.txt"), lambda p: p.write_text("hello"))
    ...     Path(folder, "new", "a.txt").read_text()
    'hello'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(fd)
    try:
        write(Path(temporary))
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide the file from others
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lets one process at a time into a directory; a killed one leaves no lock behind.

    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
    ...     os.listdir(folder)
    ['.lock']
    """
    with open(directory / ".lock", "w") as f:
        with contextlib.suppress(ImportError):  # on Windows there is no fcntl, and no lock
            import fcntl

            fcntl.flock(f, fcntl.LOCK_EX)
        yield
