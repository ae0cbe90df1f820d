"""What debugfs is told: nothing that a name could turn into another command."""

import tarfile

import pytest

from pytest_kvmlab.drivers import debugfs_script
from pytest_kvmlab.errors import ImageError
from tests.small_tar import Member, file, folder, hard_link, symlink, with_xattr


def script(*members: Member) -> list[str]:
    given = {info.name: info for info, _ in [folder(""), *members]}
    return debugfs_script.write(given).text.decode("utf-8", "surrogateescape").splitlines()


def creations(*members: Member) -> list[str]:
    """The commands that make files: the first attribute comes after the last of them."""
    lines = script(*members)
    return lines[: next(number for number, line in enumerate(lines) if line.startswith("sif"))]


def test_inodes_are_given_out_folder_by_folder() -> None:
    lines = creations(folder("b"), file("b/1"), file("a"), file("b/2"), folder("b/c"), file("b/c/1"))
    assert lines == [
        "cd <2>", 'write c12 "a"', 'mkdir "b"',
        "cd <13>", 'write c14 "1"', 'write c15 "2"', 'mkdir "c"',
        "cd <16>", 'write c17 "1"',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a b", '"a b"'),
        ('"', '""""'),
        ('a" "b', '"a"" ""b"'),
        ("!touch x", '"!touch x"'),
        ("<2>", '"<2>"'),
        ("-f", '"-f"'),
        ("\udcff", '"\udcff"'),
    ],
)
def test_a_name_stays_a_name(name: str, said: str) -> None:
    assert creations(file(name)) == ["cd <2>", f"write c12 {said}"]


@pytest.mark.parametrize("name", ["a\nrm b", "a\rb", "\0"])
def test_a_name_that_would_end_its_command_is_refused(name: str) -> None:
    with pytest.raises(ImageError, match="cannot be put on a disk"):
        script(file(name))


def test_the_target_of_a_link_is_quoted_and_refused_like_a_name() -> None:
    assert creations(symlink("s", 'a"b'))[1] == 'symlink "s" "a""b"'
    with pytest.raises(ImageError, match="cannot be put on a disk"):
        script(symlink("s", "a\n!b"))


def test_a_line_that_debugfs_would_break_is_refused() -> None:
    with pytest.raises(ImageError, match="cannot be put on a disk"):
        script(symlink("s", '"' * 4095))


@pytest.mark.parametrize("name", ["user.a b", "-f", "user.\n!x", "user", "user.<2>"])
def test_an_attribute_with_a_strange_name_is_refused(name: str) -> None:
    with pytest.raises(ImageError, match="no name of an extended attribute"):
        script(with_xattr(file("a"), name, b""))


@pytest.mark.parametrize(
    "links",
    [[hard_link("a", "missing")], [hard_link("a", "a")], [hard_link("a", "b"), hard_link("b", "a")]],
)
def test_a_hard_link_that_leads_nowhere_is_refused(links: list[Member]) -> None:
    with pytest.raises(ImageError, match="hard link"):
        script(*links)


def test_a_hard_link_may_name_another() -> None:
    lines = script(file("a"), hard_link("b", "c"), hard_link("c", "a"))
    assert [line for line in lines if line.startswith("link")] == ['link <12> "b"', 'link <12> "c"']
    assert lines[-1] == "sif <12> links_count 3"


@pytest.mark.parametrize(
    ("time", "said"), [(-1, 0), (2**40, 2**31 - 1), (float("nan"), 0), (float("inf"), 2**31 - 1)]
)
def test_a_time_that_is_none_for_the_file_system_becomes_the_nearest(time: float, said: int) -> None:
    info, content = file("a")
    info.mtime = time
    assert f"sif <12> mtime @{said}" in script((info, content))


def test_a_file_of_an_unknown_type_is_refused() -> None:
    info, content = file("a")
    info.type = tarfile.GNUTYPE_LONGNAME
    with pytest.raises(ImageError, match="unknown type"):
        script((info, content))
