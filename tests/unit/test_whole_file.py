"""Files that are there whole or not at all."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_kvmlab.lab.whole_file import write_whole


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_is_for_whom_the_user_lets_read_his_files(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "page.html", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o666 & ~umask


def test_a_file_is_utf_8_whatever_the_terminal_is(tmp_path: Path) -> None:
    code = "import pathlib, sys; from pytest_kvmlab.lab.whole_file import write_whole as write; "
    code += "write(pathlib.Path(sys.argv[1]), '\\u2026')"
    environment = os.environ | {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "page")], env=environment, check=True)
    assert (tmp_path / "page").read_bytes() == "\u2026".encode()


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "page", "before")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "page", "\udcff")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
