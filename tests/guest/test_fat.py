"""FAT file systems, read back by mtools and fsck.fat."""

import subprocess
from pathlib import Path

import pytest

from pytest_kvmlab.drivers import fat
from pytest_kvmlab.errors import ImageError

SIZE = 2**20
FILES = {"EFI/BOOT/BOOTX64.EFI": b"program", "user-data": b"#cloud-config\n", "meta-data": b""}


def mtools(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout


def test_files_come_back_as_they_went_in(tmp_path: Path) -> None:
    image = tmp_path / "seed@@1"  # which mtools would take for an offset
    fat.make(image, SIZE, "CIDATA", FILES)
    copy = image.rename(tmp_path / "copy")
    for name, content in FILES.items():
        assert mtools("mtype", "-i", copy, f"::/{name}") == content
    assert b"CIDATA" in mtools("mlabel", "-i", copy, "-s", "::")
    assert copy.stat().st_size == SIZE


def test_equal_arguments_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fat.make(tmp_path / "one", SIZE, "CIDATA", FILES)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    fat.make(Path("elsewhere/two"), SIZE, "CIDATA", dict(reversed(FILES.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "elsewhere" / "two").read_bytes()


def test_nobody_else_may_read_it_and_nothing_else_is_left(tmp_path: Path) -> None:
    fat.make(tmp_path / "seed", SIZE, "CIDATA", FILES)
    assert (tmp_path / "seed").stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [tmp_path / "seed"]


@pytest.mark.parametrize("name", ["", "/a", "a//b", "../a", "a:b", "*", "a\\b", "a\nb", "-i", "é", "a/.."])
def test_a_path_that_is_none_for_fat_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="no path for a FAT"):
        fat.make(tmp_path / "seed", SIZE, "CIDATA", {name: b""})


@pytest.mark.parametrize("label", ["", "cidata", "TWELVE BYTES", "A\n"])
def test_a_label_that_is_none_for_fat_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(ImageError, match="label"):
        fat.make(tmp_path / "seed", SIZE, label, {})


def test_names_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="ignores case"):
        fat.make(tmp_path / "seed", SIZE, "CIDATA", {"a": b"", "A": b""})


def test_files_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="Disk full"):
        fat.make(tmp_path / "seed", 65536, "CIDATA", {"a": bytes(100_000)})
