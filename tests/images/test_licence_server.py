"""The licence server of debian-12-licence, without a guest: what it does with clients that mean no good."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

SERVER = Path(__file__).parents[2] / "images/debian-12-licence/root/usr/local/lib/licence/server.py"
PLACES = 64


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def dongle(tmp_path: Path) -> Path:
    """The folder of the dongle among the devices, as the kernel shows it."""
    folder = tmp_path / "devices" / "1-1"
    folder.mkdir(parents=True)
    (folder / "idVendor").write_text("0a5e\n")
    (folder / "idProduct").write_text("2110\n")
    return folder


@pytest.fixture
def port(dongle: Path) -> Iterator[int]:
    """The port of a server that is up, and still is at the end of the test."""
    port = free_port()
    command = [sys.executable, str(SERVER), f"--port={port}", f"--devices={dongle.parent}"]
    with subprocess.Popen(command) as server:
        try:
            wait_for(port)
            yield port
            with connected(port) as client:
                assert ask(client, b"STATUS\n") == b"STATUS dongle=present seats=2 taken=0\n"
            assert server.poll() is None
        finally:
            server.kill()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            connected(port).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return
    pytest.fail("the server does not come up")


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 20)


def ask(client: socket.socket, request: bytes) -> bytes:
    client.sendall(request)
    return answers(client).readline()


def answers(client: socket.socket) -> IO[bytes]:
    return client.makefile("rb")


def rest(client: socket.socket) -> bytes:
    """What the server says until it hangs up, rudely or not."""
    said = b""
    try:
        while chunk := client.recv(4096):
            said += chunk
    except ConnectionResetError:
        pass
    return said


@pytest.mark.parametrize(
    "line",
    [b"", b"CHECKOUT", b"CHECKOUT ../x", b"CHECKOUT a b", b"CHECKOUT " + b"x" * 65, b"\xff\x00\x1b[2J"],
    ids=["nothing", "no name", "a path", "two names", "a long name", "bytes"],
)
def test_what_is_no_request_is_answered_so(port: int, line: bytes) -> None:
    with connected(port) as client:
        assert ask(client, line + b"\r\n") == b"ERROR say CHECKOUT NAME, RELEASE or STATUS\n"


def test_a_line_without_an_end_ends_the_connection(port: int) -> None:
    with connected(port) as client:
        client.sendall(b"x" * 129)
        assert rest(client) == b"ERROR the line is too long\n"


def test_a_request_may_come_in_pieces_and_two_at_once(port: int) -> None:
    with connected(port) as client:
        client.sendall(b"CHECK")
        time.sleep(0.2)
        client.sendall(b"OUT anna\nCHECKOUT anna\n")
        lines = answers(client)
        assert [lines.readline(), lines.readline()] == [b"GRANTED 1 of 2\n", b"ERROR you have a seat\n"]


def test_a_client_that_takes_no_answers_is_let_go(port: int) -> None:
    with connected(port) as client, pytest.raises(ConnectionError):
        client.sendall(b"\n" * 100_000_000)


def test_more_clients_than_places_are_turned_away_and_others_served(port: int) -> None:
    clients = [connected(port) for _ in range(PLACES + 1)]
    try:
        assert rest(clients[-1]) == b""
        assert ask(clients[0], b"CHECKOUT anna\n") == b"GRANTED 1 of 2\n"
    finally:
        for client in clients:
            client.close()
    wait_for(port)


def test_a_seat_ends_with_its_connection(port: int) -> None:
    for name in (b"anna", b"ben", b"cleo"):
        with connected(port) as client:
            assert ask(client, b"CHECKOUT " + name + b"\n").startswith(b"GRANTED")


def test_a_pulled_dongle_is_noticed_within_a_second(port: int, dongle: Path) -> None:
    with connected(port) as client:
        assert ask(client, b"CHECKOUT anna\n") == b"GRANTED 1 of 2\n"
        elsewhere = dongle.parent.parent / "pulled"
        started = time.monotonic()
        dongle.rename(elsewhere)
        assert answers(client).readline() == b"REVOKED no dongle 0a5e:2110\n"
        assert time.monotonic() - started < 2  # one for the server, one for a busy machine
        assert ask(client, b"CHECKOUT anna\n") == b"REFUSED no dongle 0a5e:2110\n"
        elsewhere.rename(dongle)
        assert ask(client, b"CHECKOUT anna\n") == b"GRANTED 1 of 2\n"
