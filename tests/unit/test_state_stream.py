"""The state of a machine on its way through a socket, with somebody at the other end who is no QEMU."""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers import state_stream
from pytest_kvmlab.drivers.state_stream import receiving, send
from pytest_kvmlab.errors import HostError

SECONDS = 20.0
SOON = 0.3


@contextmanager
def beside(act: Callable[[], object]) -> Iterator[None]:
    """Let somebody act at the same time."""
    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def says(path: Path, *pieces: bytes, then: Callable[[], object] = lambda: None) -> None:
    """Connect like a QEMU that sends its state."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(path))
        for piece in pieces:
            line.sendall(piece)
        then()


def test_a_state_arrives_whole(tmp_path: Path) -> None:
    path, state = tmp_path / "sock", bytes(range(256)) * 9000
    with receiving(path, Deadline(SECONDS)) as receive, beside(lambda: says(path, state[:77], state[77:])):
        assert receive(tmp_path / "state") == hashlib.sha256(state).hexdigest()
    assert (tmp_path / "state").read_bytes() == state
    assert not path.exists()


def test_nobody_who_sends_is_waited_for_no_longer_than_the_deadline(tmp_path: Path) -> None:
    with (
        pytest.raises(HostError, match="the state of a guest did not arrive: timed out"),
        receiving(tmp_path / "sock", Deadline(SOON)) as receive,
    ):
        receive(tmp_path / "state")
    assert not (tmp_path / "sock").exists()


@contextmanager
def falling_silent(path: Path) -> Iterator[None]:
    """Let a QEMU send the half of its state, and nothing more."""
    over = threading.Event()
    with beside(lambda: says(path, b"a state that", then=lambda: over.wait(SECONDS))):
        try:
            yield
        finally:
            over.set()


def test_who_falls_silent_is_waited_for_no_longer_than_the_deadline(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with (
        pytest.raises(HostError, match="the state of a guest did not arrive: timed out"),
        receiving(path, Deadline(SOON)) as receive,
        falling_silent(path),
    ):
        receive(tmp_path / "state")


def test_a_state_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_stream, "_MOST_BYTES", 1000)
    path = tmp_path / "sock"
    with (
        pytest.raises(HostError, match="the state of a guest is larger than"),
        receiving(path, Deadline(SECONDS)) as receive,
        beside(lambda: says(path, bytes(1001))),
    ):
        receive(tmp_path / "state")


def test_a_state_is_not_written_over_another_one(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("another guest's")
    path = tmp_path / "sock"
    with (
        pytest.raises(HostError, match=r"did not arrive: .*File exists"),
        receiving(path, Deadline(SECONDS)) as receive,
        beside(lambda: says(path)),
    ):
        receive(tmp_path / "state")


def test_a_socket_that_is_left_over_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "sock").touch()
    with receiving(tmp_path / "sock", Deadline(SECONDS)) as receive, beside(lambda: says(tmp_path / "sock")):
        assert receive(tmp_path / "state") == hashlib.sha256(b"").hexdigest()


@contextmanager
def listening(path: Path, answer: Callable[[socket.socket], object]) -> Iterator[None]:
    """Listen like a QEMU that waits for a state."""

    def accept() -> None:
        line, _ = listener.accept()
        with line:
            answer(line)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        with beside(accept):
            yield


def test_a_state_is_sent_whole(tmp_path: Path) -> None:
    heard: list[bytes] = []
    with listening(tmp_path / "sock", lambda line: heard.append(line.makefile("rb").read())):
        send(tmp_path / "sock", b"state" * 99999, Deadline(SECONDS))
    assert heard == [b"state" * 99999]


def test_a_qemu_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"QEMU did not take the state of a guest: .*No such file"):
        send(tmp_path / "sock", b"state", Deadline(SECONDS))


def test_a_qemu_that_ends_meanwhile_is_an_error(tmp_path: Path) -> None:
    with (
        listening(tmp_path / "sock", lambda line: line.recv(1)),
        pytest.raises(HostError, match="QEMU did not take the state of a guest: "),
    ):
        send(tmp_path / "sock", bytes(64 * 2**20), Deadline(SECONDS))


def test_a_qemu_that_does_not_read_is_waited_for_no_longer_than_the_deadline(tmp_path: Path) -> None:
    over = threading.Event()
    with listening(tmp_path / "sock", lambda _line: over.wait(SECONDS)):
        with pytest.raises(HostError, match="QEMU did not take the state of a guest: timed out"):
            send(tmp_path / "sock", bytes(64 * 2**20), Deadline(SOON))
        over.set()
