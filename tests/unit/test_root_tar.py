"""A tree is read from its archive, and nothing leads out of it."""

import os
from pathlib import Path

import pytest

from pytest_kvmlab.drivers import root_tar
from pytest_kvmlab.errors import ImageError
from tests.small_tar import Member, file, folder, hard_link, symlink, write


def read(archive: Path, path: str) -> bytes:
    with root_tar.opened(archive) as tree:
        return tree.read(path)


def test_links_are_followed_inside_the_tree(tmp_path: Path) -> None:
    archive = write(
        tmp_path / "tree.tar",
        file("./boot/vmlinuz-1", b"kernel"),
        symlink("./vmlinuz", "boot/vmlinuz-1"),
        symlink("./usr/up", "../../../boot"),
        symlink("./absolute", "/usr/up/vmlinuz-1"),
        hard_link("./usr/again", "./absolute"),
    )
    for path in ("vmlinuz", "usr/up/vmlinuz-1", "absolute", "usr/again"):
        assert read(archive, path) == b"kernel"


@pytest.mark.parametrize("path", ["missing", "circle", "a/missing", "dangling"])
def test_what_is_not_there_is_named(tmp_path: Path, path: str) -> None:
    archive = write(tmp_path / "tree.tar", symlink("circle", "circle"), symlink("dangling", "/etc/passwd"))
    with pytest.raises(ImageError, match=path):
        read(archive, path)


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ([file("../etc/passwd")], "leads out"),
        ([file("a/../../b")], "leads out"),
        ([symlink("a", "/etc"), file("a/passwd")], "no folder"),
        ([file("a"), file("a/b")], "no folder"),
    ],
)
def test_an_archive_that_leads_elsewhere_is_refused(
    tmp_path: Path, members: list[Member], complaint: str
) -> None:
    with pytest.raises(ImageError, match=complaint):
        read(write(tmp_path / "tree.tar", *members), "a")


def test_a_file_laid_over_replaces_the_one_of_the_archive(tmp_path: Path) -> None:
    archive = write(tmp_path / "tree.tar", folder("etc"), file("etc/motd", b"old"))
    with root_tar.opened(archive) as tree:
        tree.add("etc/motd", b"new")
        tree.add("boot/grub/grub.cfg", b"")
        assert tree.read("etc/motd") == b"new"
        assert tree.members["boot/grub"].isdir()


@pytest.mark.parametrize("kept", [100, 512 + 100])
def test_a_truncated_archive_is_refused(tmp_path: Path, kept: int) -> None:
    archive = write(tmp_path / "tree.tar", file("a", bytes(5000)))
    os.truncate(archive, kept)
    with pytest.raises(ImageError, match="damaged"):
        read(archive, "a")


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.tar"):
        read(tmp_path / "none.tar", "a")
