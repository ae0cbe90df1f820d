"""The reader of a serial line, at a socket whose other end plays the guest."""

import re
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.console_log import KEPT_BYTES, LOG_LIMIT_BYTES, ConsoleReader, printable
from pytest_kvmlab.errors import GuestError, HostError


@contextmanager
def reading(folder: Path, limit: int = LOG_LIMIT_BYTES) -> Iterator[tuple[socket.socket, ConsoleReader]]:
    guest, line = socket.socketpair()
    reader = ConsoleReader(line, folder / "console.log", limit=limit)
    with guest:
        yield guest, reader
        reader.close()


def said(reader: ConsoleReader, text: str) -> None:
    assert reader.wait_for(re.compile(re.escape(text)), Deadline(10)), reader.tail(10)


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("größer 𝄞\t!".encode(), "größer 𝄞\t!"),
        (b"\x1b[2J\x07", r"\x1b[2J\x07"),
        (b"\xff\xfe", r"\xff\xfe"),
        ("\u009b2J".encode(), r"\x9b2J"),
        ("\u202egnp.exe".encode(), r"\u202egnp.exe"),
        ("\U000e0041".encode(), r"\U000e0041"),
    ],
)
def test_nothing_that_a_terminal_obeys_is_shown(data: bytes, shown: str) -> None:
    assert printable(data) == shown


def test_the_log_has_whole_lines_with_their_times(tmp_path: Path) -> None:
    with reading(tmp_path) as (guest, reader):
        guest.sendall(b"Linux ver")
        said(reader, "ver")
        guest.sendall(b"sion\r\n\r\n\x1b[31mred\r\nno end")
        said(reader, "no end")
    lines = (tmp_path / "console.log").read_text().splitlines()
    times = [re.fullmatch(r"\[ *(\d+\.\d{3})\] (.*)", line) for line in lines]
    assert [found and found[2] for found in times] == ["Linux version", "", r"\x1b[31mred", "no end"]


def test_what_no_file_takes_any_more_is_had_once(tmp_path: Path) -> None:
    with reading(tmp_path, limit=100) as (guest, reader):
        guest.sendall(b"x" * 99 + b"\n")
        said(reader, "x\n")
        reader.unwritten()
        guest.sendall(b"y" * KEPT_BYTES + b"Kernel panic\n")
        said(reader, "panic\n")
        assert reader.unwritten().endswith(b"yKernel panic\n")
        assert reader.unwritten() == b""
    assert b"panic" not in (tmp_path / "console.log.raw").read_bytes()


def test_who_catches_up_has_all_that_was_sent_before(tmp_path: Path) -> None:
    with reading(tmp_path) as (guest, reader):
        for number in range(500):
            guest.sendall(b"x" * 100 + b"%d\n" % number)
            reader.catch_up(Deadline(10))
            assert reader.text().endswith(f"x{number}\n")


def test_a_line_that_never_pauses_is_not_waited_for(tmp_path: Path) -> None:
    with reading(tmp_path) as (guest, reader):
        babble = threading.Thread(target=babbled, args=(guest,))
        babble.start()
        reader.catch_up(deadline := Deadline(0.2))
        assert deadline.elapsed < 5
        reader.close()
        babble.join()
        reader.catch_up(Deadline(10))


def babbled(guest: socket.socket) -> None:
    """Send until the other side has hung up."""
    with suppress(OSError):
        while True:
            guest.sendall(b"x" * 65536)


def test_the_transcript_is_what_was_sent(tmp_path: Path) -> None:
    with reading(tmp_path) as (guest, reader):
        guest.sendall("\x1b[2J größer\r\n".encode())
        said(reader, "größer\r\n")
        assert reader.text() == "\x1b[2J größer\r\n"


def test_memory_keeps_only_the_newest(tmp_path: Path) -> None:
    with reading(tmp_path) as (guest, reader):
        guest.sendall(b"oldest\n" + b"x" * KEPT_BYTES + b"\nnewest\n")
        said(reader, "newest\n")
        data, position = reader.read(0, Deadline(0))
        assert (len(data), position) == (KEPT_BYTES, KEPT_BYTES + 15)
        assert reader.tail(1) == ["newest"]
        assert reader.text().startswith("oldest")


def test_a_full_disk_does_not_stop_the_reading(tmp_path: Path) -> None:
    (tmp_path / "console.log").symlink_to("/dev/full")
    with reading(tmp_path) as (guest, reader):
        guest.sendall(b"still here\n")
        said(reader, "still here")
        assert reader.text() == "still here\n"


def test_lines_that_a_full_disk_swallowed_are_noted(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with reading(tmp_path) as (guest, reader):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            guest.sendall(b"lost\n")
            said(reader, "lost\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        guest.sendall(b"found\n")
        said(reader, "found\n")
    log = (tmp_path / "console.log").read_text()
    assert re.fullmatch(r"\[1 lines could not be written\]\n\[ *[\d.]+\] found\n", log)


def test_a_babbling_guest_does_not_fill_the_disk(tmp_path: Path) -> None:
    with reading(tmp_path, limit=1000) as (guest, reader):
        guest.sendall(b"babble\n" * 1000 + b"end\n")
        said(reader, "end\n")
    log = (tmp_path / "console.log").read_text()
    assert len(log) < 1100
    assert re.search(r"\n\[\d+ lines could not be written\]\n$", log)


def test_a_log_that_cannot_be_opened_is_an_error_of_the_host(tmp_path: Path) -> None:
    with (
        socket.socket() as line,
        pytest.raises(HostError, match="console log cannot be opened: No such file or directory"),
    ):
        ConsoleReader(line, tmp_path / "absent" / "console.log")


def test_waiting_for_a_pattern_counts_what_came_before_and_what_comes(tmp_path: Path) -> None:
    with reading(tmp_path) as (guest, reader):
        guest.sendall(b"login: ")
        said(reader, "login: ")
        said(reader, "login: ")
        assert reader.wait_for(re.compile("absent"), Deadline(0.1)) is None


def test_the_end_of_the_line_ends_the_waiting(tmp_path: Path) -> None:
    with reading(tmp_path) as (guest, reader):
        guest.sendall(b"Power down")
        guest.close()
        assert reader.wait_for(re.compile("absent"), Deadline(60)) is None
        assert (reader.ended, reader.tail(1)) == (True, ["Power down"])
        with pytest.raises(GuestError, match="serial line is closed"):
            reader.write(b"?", Deadline(1))


def test_nothing_is_written_to_a_line_that_we_closed(tmp_path: Path) -> None:
    with reading(tmp_path) as (_, reader):
        reader.close()
        with pytest.raises(GuestError, match="serial line is closed"):
            reader.write(b"?", Deadline(1))


def test_a_guest_that_does_not_read_does_not_hold_the_writer(tmp_path: Path) -> None:
    with reading(tmp_path) as (_, reader), pytest.raises(GuestError, match="does not read its serial line"):
        reader.write(b"x" * 10_000_000, Deadline(0.2))
