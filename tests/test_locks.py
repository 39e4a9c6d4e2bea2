"""A lock on a folder: who has it is told, it can be waited for, and a folder that cannot be made is an error."""

import os
import threading

import pytest

from lmrl.errors import SettingsError
from lmrl.locks import folder_lock


def test_a_lock_is_waited_for_and_its_holder_named(tmp_path):
    order, waiting = [], threading.Event()

    def wait(holder):
        order.append(holder)
        waiting.set()

    def second():
        with folder_lock(tmp_path / "folder", wait):
            order.append("second")

    thread = threading.Thread(target=second)
    with folder_lock(tmp_path / "folder", wait):
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert order[0].startswith(f"process {os.getpid()} on ") and order[1:] == ["first", "second"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    message = r"file/folder cannot be made or written to \(Not a directory\); choose"
    with pytest.raises(SettingsError, match=message), folder_lock(tmp_path / "file" / "folder", print):
        pass
