"""Discs that xorriso makes for us."""

import os
import subprocess
from pathlib import Path

import pytest

from pytest_kvmlab.drivers import iso
from pytest_kvmlab.errors import ImageError
from tests.guest.grub_disc import write_disc


def read(disc: Path, *commands: str) -> str:
    ended = subprocess.run(
        ["xorriso", "-indev", str(disc), *commands], capture_output=True, text=True, timeout=60, check=True
    )
    return ended.stdout


def content(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    for name in ("boot.img", "plain", "a=b\\c"):
        (folder / name).write_text(f"content of {name}\n" * 200)
    return {"boot/boot.img": folder / "boot.img", "plain": folder / "plain", "d/a=b\\c": folder / "a=b\\c"}


def test_a_disc_has_its_files_and_a_boot_record(tmp_path: Path) -> None:
    iso.make(tmp_path / "disc.iso", "LABEL", content(tmp_path / "files"), "boot/boot.img")
    found = read(
        tmp_path / "disc.iso", "-find", "/", "-type", "f", "--", "-pvd_info", "-report_el_torito", "plain"
    )
    assert {"'/plain'", "'/d/a=b\\c'", "'/boot/boot.img'"} <= set(found.split())
    assert "Volume Id    : LABEL" in found
    assert "El Torito img path :   1  /boot/boot.img" in found


def test_equal_files_give_equal_discs_wherever_and_whenever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iso.make(tmp_path / "one.iso", "LABEL", content(tmp_path / "one"), "boot/boot.img")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.chdir("/")
    before = os.umask(0o077)
    try:
        files = content(tmp_path / "other")
    finally:
        os.umask(before)
    os.utime(files["plain"], (1, 1))
    iso.make(tmp_path / "other.iso", "LABEL", files, "boot/boot.img")
    assert (tmp_path / "one.iso").read_bytes() == (tmp_path / "other.iso").read_bytes()


def test_the_loader_on_a_disc_is_the_same_each_time(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one, other = (write_disc(tmp_path / name, "halt") for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="missing"):
        iso.make(tmp_path / "disc.iso", "LABEL", {"boot.img": tmp_path / "missing"}, "boot.img")
