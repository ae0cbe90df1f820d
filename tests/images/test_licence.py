"""The image debian-12-licence: a server that serves only while its USB dongle is there."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BufferedRWPair

import pytest

from pytest_kvmlab import Guest

PORT, DONGLE = 2110, "0a5e:2110"

pytestmark = [
    pytest.mark.kvm(image="debian-12-licence", usb=[{"virtual": "licence", "id": DONGLE, "plugged": False}]),
    pytest.mark.timeout(1800),
]


class Client:
    """A line to the server."""

    def __init__(self, stream: BufferedRWPair) -> None:
        self._stream = stream

    def hear(self) -> str:
        return self._stream.readline().decode().strip()

    def ask(self, line: str) -> str:
        self._stream.write(f"{line}\n".encode())
        self._stream.flush()
        return self.hear()


@pytest.fixture
def connect(shared_guest: Guest) -> Iterator[Callable[[], Client]]:
    with ExitStack() as opened:

        def connect() -> Client:
            connection = opened.enter_context(shared_guest.connect(PORT))
            connection.settimeout(60)
            return Client(opened.enter_context(connection.makefile("rwb")))

        yield connect


@pytest.fixture
def plugged(shared_guest: Guest) -> Iterator[Callable[[bool], None]]:
    """Plugs the dongle in and pulls it out."""
    dongle = shared_guest.usb["licence"]

    def plug(wanted: bool) -> None:
        (dongle.plug if wanted else dongle.unplug)()
        shared_guest.wait_until_succeeds(f"lsusb | grep -c {DONGLE} | grep -x {int(wanted)}")

    yield plug
    plug(False)


def test_without_its_dongle_nobody_gets_a_licence(shared_guest: Guest, connect: Callable[[], Client]) -> None:
    shared_guest.wait_for_unit("licence.service")
    client = connect()
    assert client.ask("CHECKOUT anna") == f"REFUSED no dongle {DONGLE}"
    assert client.ask("STATUS") == "STATUS dongle=absent seats=2 taken=0"
    refused = shared_guest.run("licence run anna -- touch /run/has-run")
    assert (refused.exit_status, refused.stderr) == (3, f"REFUSED no dongle {DONGLE}\n")
    shared_guest.fail("test -e /run/has-run")


def test_seats_come_and_go_with_the_dongle(
    shared_guest: Guest, connect: Callable[[], Client], plugged: Callable[[bool], None]
) -> None:
    first, second, third = connect(), connect(), connect()
    assert first.ask("CHECKOUT anna") == f"REFUSED no dongle {DONGLE}"
    plugged(True)
    assert first.ask("CHECKOUT anna") == "GRANTED 1 of 2"
    assert second.ask("CHECKOUT ben") == "GRANTED 2 of 2"
    assert third.ask("CHECKOUT cleo") == "REFUSED all 2 seats are taken"
    assert second.ask("RELEASE") == "RELEASED"
    assert shared_guest.succeed("licence run cleo -- echo at work") == "at work\n"

    started = time.monotonic()
    plugged(False)
    assert first.hear() == f"REVOKED no dongle {DONGLE}"
    assert time.monotonic() - started < 10 * shared_guest.timeout_scale
    assert first.ask("RELEASE") == "ERROR you have no seat"
    assert third.ask("CHECKOUT cleo") == f"REFUSED no dongle {DONGLE}"


def test_a_program_ends_when_its_licence_does(shared_guest: Guest, plugged: Callable[[bool], None]) -> None:
    plugged(True)
    shared_guest.succeed("systemd-run --unit=work licence run dora -- sleep infinity")
    shared_guest.wait_until_succeeds("licence status | grep taken=1")
    plugged(False)
    shared_guest.wait_until_succeeds("systemctl is-failed work")
    assert f"REVOKED no dongle {DONGLE}" in shared_guest.succeed("journalctl --unit=work --no-pager")


def test_it_runs_as_nobody_in_particular(shared_guest: Guest) -> None:
    assert shared_guest.testinfra.process.get(comm="server.py").user not in ("root", "nobody")
    assert shared_guest.testinfra.service("licence").is_enabled
