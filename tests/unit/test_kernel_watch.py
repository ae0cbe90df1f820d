"""Complaints on a console that is read while it is written."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from pytest_kvmlab.lab.commands import Commands
from pytest_kvmlab.lab.kernel_watch import KernelWatch

_COMPLAINT = b"[    1.500000] EXT4-fs error (device vda): trigger_test_error:129: comm sh: x\r\n"


def watch(transcript: Path) -> KernelWatch:
    """The watch of a guest that is switched off, and has left this behind."""
    guest = SimpleNamespace(
        connected=False,
        machine=SimpleNamespace(was_on=False, transcript=transcript, plan=SimpleNamespace(boot=None)),
    )
    return KernelWatch(cast("Commands", guest))


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    transcript = tmp_path / "console.log.raw"
    heard = watch(transcript)
    for length in range(len(_COMPLAINT)):
        transcript.write_bytes(b"~ # " + _COMPLAINT[:length])
        assert heard.look(ask=False).findings == ()
    transcript.write_bytes(b"~ # " + _COMPLAINT)
    (found,) = heard.look(ask=False).findings
    assert found.kind == "fs-error"
    assert heard.look(ask=False).findings == ()


def test_what_is_heard_before_the_end_of_a_boot_is_told_with_the_next_look(tmp_path: Path) -> None:
    transcript = tmp_path / "console.log.raw"
    transcript.write_bytes(b"booting\r\n" + _COMPLAINT)
    heard = watch(transcript)
    heard.look_before_it_ends()
    transcript.write_bytes(b"booting\r\n")
    heard.skip(transcript.stat().st_size)
    (found,) = heard.look(ask=False).findings
    assert found.kind == "fs-error"
    assert heard.look(ask=False).findings == ()


def test_a_line_without_end_hides_nothing_that_follows(tmp_path: Path) -> None:
    transcript = tmp_path / "console.log.raw"
    transcript.write_bytes(b"x" * (3 * 2**20 + 5) + b"\n" + _COMPLAINT)
    (found,) = watch(transcript).look(ask=False).findings
    assert found.kind == "fs-error"
