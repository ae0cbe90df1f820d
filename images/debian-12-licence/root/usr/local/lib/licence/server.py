#!/usr/bin/python3
"""A licence server that serves only while its USB dongle is there.

Clients speak lines of ASCII over TCP, and each is answered with one line:

    CHECKOUT NAME   GRANTED 1 of 2 | REFUSED no dongle 0a5e:2110 | REFUSED all 2 seats are taken
    RELEASE         RELEASED | ERROR you have no seat
    STATUS          STATUS dongle=present seats=2 taken=1

A seat belongs to a connection and ends with it. When the dongle is pulled, whoever has a seat loses it
and is told so unasked: REVOKED no dongle 0a5e:2110.
"""

import argparse
import os
import re
import selectors
import socket
import time
from pathlib import Path

LOOK_SECONDS = 0.5
IDLE_SECONDS = 30
LONGEST_LINE = 128
MOST_CLIENTS = 64
CHUNK = 4096


class Dongle:
    """The USB device, wherever it is plugged in: linux/Documentation/ABI/testing/sysfs-bus-usb."""

    def __init__(self, identity: str, devices: Path) -> None:
        self.identity = identity
        self._devices = devices

    def is_there(self) -> bool:
        """Look at all devices, any of which may go meanwhile."""
        return any(_identity(device) == self.identity for device in self._devices.glob("*/idVendor"))


def _identity(vendor: Path) -> str | None:
    try:
        return f"{vendor.read_text().strip()}:{vendor.with_name('idProduct').read_text().strip()}"
    except OSError:
        return None


class Client:
    """A connection: what it has sent of a line so far, and whether it has a seat."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.seat: str | None = None
        self.last_heard = time.monotonic()
        self._received = b""

    def lines(self) -> list[str]:
        """Read what has come.

        Raises:
            ConnectionError: the client is gone, or sends what is no line.
        """
        chunk = self.connection.recv(CHUNK)
        if not chunk:
            raise ConnectionError
        *whole, self._received = (self._received + chunk).split(b"\n")
        if max(map(len, (*whole, self._received))) > LONGEST_LINE:
            self.say("ERROR the line is too long")
            raise ConnectionError
        if whole:
            self.last_heard = time.monotonic()
        return [line.decode("ascii", "replace").strip() for line in whole]

    def say(self, line: str) -> None:
        """Answer, unless the client does not take its answers: there is no queue that it could fill.

        Raises:
            OSError: it does not.
        """
        answer = f"{line}\n".encode()
        if self.connection.send(answer) < len(answer):
            raise BlockingIOError

    def is_idle(self) -> bool:
        """Say whether it only takes a place: no seat, and nothing heard of it for a while."""
        return self.seat is None and time.monotonic() > self.last_heard + IDLE_SECONDS


class Server:
    """Seats, and the connections that want one."""

    def __init__(self, listener: socket.socket, dongle: Dongle, seats: int) -> None:
        self._listener = listener
        self._dongle = dongle
        self._seats = seats
        self._clients: set[Client] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def serve(self) -> None:
        """Serve until the process ends."""
        next_look = 0.0
        while True:
            for key, _events in self._selector.select(max(0.0, next_look - time.monotonic())):
                if key.data is None:
                    self._accept()
                else:
                    self._hear(key.data)
            if time.monotonic() >= next_look:
                self._look()
                next_look = time.monotonic() + LOOK_SECONDS

    def _accept(self) -> None:
        try:
            connection, _address = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= MOST_CLIENTS:
            connection.close()
            return
        connection.setblocking(False)
        # so that the seat of a client whose machine has died comes free
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS)
        client = Client(connection)
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _hear(self, client: Client) -> None:
        try:
            for line in client.lines():
                client.say(self._answer(client, line))
        except OSError:
            self._drop(client)

    def _answer(self, client: Client, line: str) -> str:
        command, _, argument = line.partition(" ")
        if command == "CHECKOUT" and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", argument):
            return self._check_out(client, argument)
        if line == "RELEASE":
            return self._release(client)
        if line == "STATUS":
            presence = "present" if self._dongle.is_there() else "absent"
            return f"STATUS dongle={presence} seats={self._seats} taken={len(self._holders())}"
        return "ERROR say CHECKOUT NAME, RELEASE or STATUS"

    def _check_out(self, client: Client, name: str) -> str:
        if client.seat is not None:
            return "ERROR you have a seat"
        if not self._dongle.is_there():
            return f"REFUSED no dongle {self._dongle.identity}"
        if len(self._holders()) >= self._seats:
            return f"REFUSED all {self._seats} seats are taken"
        client.seat = name
        return f"GRANTED {len(self._holders())} of {self._seats}"

    def _release(self, client: Client) -> str:
        if client.seat is None:
            return "ERROR you have no seat"
        client.seat = None
        return "RELEASED"

    def _holders(self) -> list[Client]:
        return [client for client in self._clients if client.seat is not None]

    def _look(self) -> None:
        """Whoever is idle goes, and without the dongle every seat."""
        for client in [client for client in self._clients if client.is_idle()]:
            self._drop(client)
        if (holders := self._holders()) and not self._dongle.is_there():
            for client in holders:
                self._revoke(client)

    def _revoke(self, client: Client) -> None:
        client.seat = None
        try:
            client.say(f"REVOKED no dongle {self._dongle.identity}")
        except OSError:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        self._clients.discard(client)
        self._selector.unregister(client.connection)
        client.connection.close()


def tell_systemd() -> None:
    """Say that clients can come: sd_notify(3)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            door.sendto(b"READY=1", address.replace("@", "\0", 1))


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description="Hands out seats while a USB dongle is there.")
    parser.add_argument("--port", type=int, default=2110)
    parser.add_argument("--seats", type=int, default=2)
    parser.add_argument("--dongle", default="0a5e:2110", metavar="VENDOR:PRODUCT")
    parser.add_argument("--devices", type=Path, default=Path("/sys/bus/usb/devices"))
    arguments = parser.parse_args()
    with socket.create_server(("", arguments.port), backlog=MOST_CLIENTS) as listener:
        listener.setblocking(False)
        tell_systemd()
        Server(listener, Dongle(arguments.dongle.lower(), arguments.devices), arguments.seats).serve()


if __name__ == "__main__":
    main()
