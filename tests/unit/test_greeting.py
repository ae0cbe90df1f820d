import socket
import threading
import time
from contextlib import closing, suppress

import pytest

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import GuestError
from pytest_kvmlab.lab.greeting import first_to_greet


def greet(line: socket.socket) -> None:
    with suppress(OSError):  # nobody waited for it
        line.sendall(b"SSH-")


class Server:
    """What user-mode networking makes of a guest: connections are accepted, and treated in turn as told."""

    def __init__(self, *behaviours: str) -> None:
        self.behaviours = iter(behaviours)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.accepted: list[socket.socket] = []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        with suppress(OSError):  # closed by the test
            for behaviour in self.behaviours:
                line, _ = self.listener.accept()
                self.accepted.append(line)
                if behaviour == "excuse":
                    line.sendall(b"Exceeded MaxStartups\r\n")
                if behaviour == "hang up":
                    line.close()
                if behaviour.startswith("greet"):
                    threading.Timer(float(behaviour.partition(" after ")[2] or 0), greet, [line]).start()

    def dial(self, seconds: float) -> socket.socket:
        return socket.create_connection(self.listener.getsockname(), timeout=seconds)

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, which may just be accepting
        self.thread.join()
        self.listener.close()
        for line in self.accepted:
            line.close()


def greeting(server: Server, seconds: float = 20) -> bytes:
    with closing(server), first_to_greet(server.dial, lambda: None, Deadline(seconds)) as line:
        return line.recv(9)


def test_a_connection_made_too_early_does_not_hold_up_a_later_one() -> None:
    started = time.monotonic()
    assert greeting(Server("silence", "silence", "silence", "greet")) == b"SSH-"
    assert time.monotonic() - started < 5


def test_a_slow_server_gets_the_time_it_needs() -> None:
    assert greeting(Server(*["greet after 1.5"] * 40)) == b"SSH-"


def test_a_refused_connection_is_tried_again() -> None:
    assert greeting(Server("hang up", "hang up", "greet")) == b"SSH-"


def test_no_greeting_in_time_is_an_error_that_counts_the_tries() -> None:
    with pytest.raises(TimeoutError, match=r"\d connections, none was greeted within 0.6 s"):
        greeting(Server(*["silence"] * 40), seconds=0.6)


def test_what_is_wrong_with_the_guest_ends_the_dialling() -> None:
    def check() -> None:
        raise GuestError("it panicked", phase="network")

    with closing(Server("silence")) as server, pytest.raises(GuestError, match="it panicked"):
        first_to_greet(server.dial, check, Deadline(20))


def test_an_excuse_is_no_greeting() -> None:
    assert greeting(Server("excuse", "excuse", "greet")) == b"SSH-"


def test_where_connections_are_accepted_by_the_server_itself_one_is_enough() -> None:
    server = Server(*["greet after 1.5"] * 40)
    with closing(server), first_to_greet(server.dial, lambda: None, Deadline(20), early=False) as line:
        assert line.recv(9) == b"SSH-"
    assert len(server.accepted) == 1
