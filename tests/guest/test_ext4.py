"""ext4 file systems with the files of a tree, read back by debugfs and proved by e2fsck."""

import hashlib
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_kvmlab.drivers import ext4, root_tar
from pytest_kvmlab.errors import ImageError
from tests.small_tar import TIME, Member, device, file, folder, hard_link, symlink, with_xattr, write

SIZE = 32 * 2**20
OFFSET = 2**20
NOBODY = 65534
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
TREE = (
    folder("./", mode=0o755),
    folder("./etc"),
    file("./etc/shadow", b"secret", mode=0o640, owner=(0, 42)),
    file("./usr/bin/sudo", b"program", mode=0o4755),
    with_xattr(file("./usr/bin/ping", b"ping"), "security.capability", CAPABILITY),
    hard_link("./usr/bin/also", "./usr/bin/sudo"),
    symlink("./bin", "usr/bin"),
    symlink("./long", "x/" * 200),
    folder("./tmp", mode=0o1777),
    file("./srv/big", bytes(range(256)) * 10_000, owner=(100_000, 100_001)),
    file("./srv/empty"),
    device("./dev/null", tarfile.CHRTYPE, 1, 3),
    device("./dev/vda", tarfile.BLKTYPE, 254, 16),
    device("./dev/pipe", tarfile.FIFOTYPE, 0, 0),
)


def made(folder: Path, *members: Member) -> Path:
    """The whole of it, with the check that it makes of itself."""
    write(folder / "tree.tar", *members)
    with root_tar.opened(folder / "tree.tar") as tree:
        ext4.from_tree(tree, folder / "disk?.raw", SIZE, "root", offset=OFFSET)
    return (folder / "disk?.raw").rename(folder / "disk.raw")


def ask(disk: Path, command: str) -> bytes:
    environment = {**os.environ, "DEBUGFS_PAGER": "cat", "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    place = f"{disk}?offset={OFFSET}"
    asked = ["debugfs", "-R", command, place]
    return subprocess.run(asked, check=True, capture_output=True, timeout=30, env=environment).stdout


def sha256(disk: Path) -> str:
    return hashlib.sha256(disk.read_bytes()).hexdigest()


def names(disk: Path, path: str) -> set[bytes]:
    entries = (line.split(b"/") for line in ask(disk, f"ls -p {path}").splitlines() if line)
    return {entry[5] for entry in entries} - {b".", b"..", b"lost+found"}


def told(disk: Path, path: str) -> str:
    return ask(disk, f'stat "{path}"').decode()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("ext4"), *TREE)


@pytest.mark.parametrize(
    ("path", "facts"),
    [
        ("/etc/shadow", ["Type: regular", "Mode:  0640", "User:     0   Group:    42", "Links: 1"]),
        ("/usr/bin/sudo", ["Mode:  04755", "Links: 2"]),
        ("/usr/bin/also", ["Mode:  04755", "Links: 2"]),
        ("/tmp", ["Type: directory", "Mode:  01777"]),
        ("/usr", ["Type: directory", "Mode:  0755"]),
        ("/srv/big", ["User: 100000   Group: 100001", "Size: 2560000"]),
        ("/bin", ["Type: symlink", 'Fast link dest: "usr/bin"']),
        ("/dev/null", ["Type: character special", "Device major/minor number: 01:03"]),
        ("/dev/vda", ["Type: block special", "Device major/minor number: 254:16"]),
        ("/dev/pipe", ["Type: FIFO", "Mode:  0666"]),
    ],
)
def test_a_file_is_what_it_was_in_the_archive(disk: Path, path: str, facts: list[str]) -> None:
    stat = told(disk, path)
    assert [fact for fact in facts if fact not in stat] == []


@pytest.mark.parametrize("path", ["/etc/shadow", "/etc", "/bin", "/dev/null"])
def test_all_times_are_the_time_of_modification(disk: Path, path: str) -> None:
    times = re.findall(r"^ ?[acm]r?time: 0x([0-9a-f]+):([0-9a-f]+)", told(disk, path), re.MULTILINE)
    assert times == [(f"{TIME:x}", "0" * 8)] * 4


def test_contents_links_and_attributes_arrive(disk: Path) -> None:
    assert ask(disk, "cat /srv/big") == bytes(range(256)) * 10_000
    assert ask(disk, "cat /usr/bin/also") == b"program"
    assert ask(disk, "cat /srv/empty") == b""
    assert b"x/" * 200 in ask(disk, "cat /long")
    assert CAPABILITY.hex(" ").encode() in ask(disk, "ea_get -x /usr/bin/ping security.capability")


def test_hostile_names_are_names_and_nothing_else(tmp_path: Path) -> None:
    hostile = [
        'a"b',
        "a b",
        " ",
        "'",
        "\\",
        "<2>",
        "-f",
        "!touch x",
        "#",
        "*",
        "\t",
        "é",
        "\udcff",
        "%s",
        "?",
    ]
    disk = made(tmp_path, *(file(name, b"content") for name in hostile), symlink("s", '" "!<2>'))
    expected = {name.encode("utf-8", "surrogateescape") for name in [*hostile, "s"]}
    assert names(disk, "/") == expected
    assert 'Fast link dest: "" "!<2>"' in told(disk, "/s")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.raw", "tree.tar"]


@pytest.mark.parametrize("member", [file("a\nrm b"), symlink("a", "b\r!touch x"), file("a" * 256)])
def test_a_name_that_cannot_be_said_is_refused(tmp_path: Path, member: Member) -> None:
    with pytest.raises(ImageError):
        made(tmp_path, member)


def test_folders_grow_for_hard_links_too(tmp_path: Path) -> None:
    many = [hard_link(f"links/{number:0100}", "file") for number in range(200)]
    disk = made(tmp_path, file("file", b"one"), folder("links"), *many)
    assert len(names(disk, "/links")) == 200
    assert "Links: 201" in told(disk, "/file")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Programs that are started now run as nobody, if this is root."""
    mask = os.umask(0o077)
    if privileged := os.geteuid() == 0:
        # the saved ids lead back; with mixed others some programs would distrust their environment
        os.setresgid(NOBODY, NOBODY, 0)
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        if privileged:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
        os.umask(mask)


def test_another_user_in_another_folder_gets_the_same_bytes(disk: Path) -> None:
    with as_nobody(), tempfile.TemporaryDirectory(dir="/tmp") as elsewhere:
        other = sha256(made(Path(elsewhere), *reversed(TREE)))
    assert other == sha256(disk)


def test_files_that_do_not_fit_are_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="do not fit"):
        made(tmp_path, file("a", bytes(SIZE + 1)))


def test_a_file_system_that_runs_full_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"(?s)debugfs.*block"):
        made(tmp_path, file("a", b"x" * (SIZE - 2**20)))
