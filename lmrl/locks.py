"""One process at a time in a folder. The operating system takes a lock back when its holder dies, so none is stale."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lmrl.errors import SettingsError

LOCK_FILE = ".lock"


@contextmanager
def folder_lock(folder: Path, when_taken: Callable[[str], None]) -> Iterator[None]:
    """Hold a folder, which is made, for this process alone.

    Where another process holds it, ``when_taken`` is told which one ("process 123 on this-machine"); if that does not
    raise, the lock is waited for. On systems and file systems without such locks nothing is held. Raises
    ``SettingsError`` for a folder that cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{folder} cannot be made or written to ({error.strerror}); choose another one.") from error
    with opened as file:
        try:
            import fcntl
        except ImportError:
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            when_taken(file.read().strip() or "another process")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            yield
            return
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
