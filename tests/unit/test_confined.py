"""Bounds of programs that read a stranger's bytes, with programs that run into them."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_kvmlab.drivers.confined import Limits, confined, run_confined
from pytest_kvmlab.errors import HostError, ImageError

ENOUGH = Limits(seconds=30, file_size=2**20)


def test_a_program_that_keeps_its_bounds_is_heard() -> None:
    assert run_confined(["echo", "hello"], package="coreutils", limits=ENOUGH) == "hello\n"


@pytest.mark.parametrize(
    ("command", "limits", "complaint"),
    [
        (["sleep", "30"], Limits(0.2, 2**20), "sleep did not end within 0.2 seconds"),
        (["yes", "no"], ENOUGH, "yes does not stop talking"),
        (
            ["dd", "if=/dev/zero", "of=out", "bs=1M", "count=9"],
            ENOUGH,
            "dd wanted to write more than 1048576",
        ),
        (["tail", "-n", "1", "/dev/zero"], ENOUGH, "tail: memory exhausted"),
        (["ls", "/nowhere"], ENOUGH, r"ls /nowhere ended with status 2\n.*No such file"),
    ],
)
def test_a_program_that_leaves_its_bounds_is_stopped(
    tmp_path: Path, command: Sequence[str], limits: Limits, complaint: str
) -> None:
    with pytest.raises(ImageError, match=complaint):
        run_confined(command, package="coreutils", limits=limits, folder=tmp_path)


def test_a_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(HostError, match=r"kvmlab-none is not there\n.*\n.*\n.*install the package nothing"):
        run_confined(["kvmlab-none", "-x"], package="nothing", limits=ENOUGH)


def test_a_program_is_gone_when_nobody_reads_on() -> None:
    with pytest.raises(ImageError, match="enough"), confined(["yes"], package="coreutils", limits=ENOUGH):
        raise ImageError("enough")
