"""A folder is replaced as a whole: whenever the process is killed, the old one or the whole new one is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from midstream.core.files import recover_folders, replacing_folder

KILLED = 9
REPLACE = """
import os, sys
from pathlib import Path
from midstream.core.files import replacing_folder

left = int(sys.argv[2])

def count(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        left -= 1
        if left < 0:
            os._exit(9)

sys.addaudithook(count)
with replacing_folder(Path(sys.argv[1])) as folder:
    (folder / "a").write_text("new")
    (folder / "b").write_text("new")
"""


def write(folder: Path, text: str) -> None:
    with replacing_folder(folder) as temporary:
        (temporary / "a").write_text(text)
        (temporary / "b").write_text(text)


def content(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in "ab"]


def test_a_kill_at_any_change_of_the_disk_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    seen, folder = [], tmp_path / "one"
    for changes in range(20):
        write(folder, "old")
        ended = subprocess.run([sys.executable, "-c", REPLACE, str(folder), str(changes)], check=False).returncode
        recover_folders(tmp_path)
        seen.append(content(folder))
        assert seen[-1] in (["old"] * 2, ["new"] * 2)
        if ended != KILLED:
            break
    assert ["old"] * 2 in seen and seen[-1] == ["new"] * 2
    write(folder, "newest")
    assert [path.name for path in tmp_path.iterdir()] == ["one"] and content(folder) == ["newest"] * 2


@pytest.mark.parametrize("exists", [True, False])
def test_a_new_folder_that_cannot_be_moved_in_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    folder, replace = tmp_path / "one", Path.replace
    if exists:
        write(folder, "old")

    def fail(path: Path, target: Path) -> Path:
        if path.name.endswith(".tmp"):
            raise OSError("disk failed")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk failed"):
        write(folder, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["one"] * exists
    if exists:
        assert content(folder) == ["old"] * 2
