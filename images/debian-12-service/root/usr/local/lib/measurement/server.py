#!/usr/bin/python3
"""A service that collects readings of measuring stations, and still has them after a restart.

Clients speak lines of ASCII over TCP, and each is answered with one line:

    RECORD STATION VALUE    RECORDED 3
    MEAN STATION            MEAN 21.5 of 3 | NONE
"""

import contextlib
import math
import os
import re
import socket
import sys
import threading
from pathlib import Path

PORT = 7300
IDLE_SECONDS = 30
LONGEST_LINE = 128
MOST_CLIENTS = 16
MOST_READINGS = 100_000

RECORD = re.compile(r"RECORD ([A-Za-z0-9._-]{1,32}) (-?[0-9]{1,9}(?:\.[0-9]{1,9})?)")
MEAN = re.compile(r"MEAN ([A-Za-z0-9._-]{1,32})")


class Readings:
    """What the stations have reported: in memory, and first of all in a file."""

    def __init__(self, file: Path) -> None:
        self._values: dict[str, list[float]] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._file = file.open("a+", encoding="ascii")
        self._load()

    def record(self, station: str, value: str) -> str:
        """Keep a reading, so that a power failure does not lose it."""
        with self._lock:
            if self._count >= MOST_READINGS:
                return "ERROR there is no room for more"
            self._append(f"{station} {value}\n")
            return f"RECORDED {self._keep(station, float(value))}"

    def mean(self, station: str) -> str:
        """The mean of a station's readings."""
        with self._lock:
            values = self._values.get(station, [])
            return f"MEAN {math.fsum(values) / len(values):g} of {len(values)}" if values else "NONE"

    def _load(self) -> None:
        self._file.seek(0)
        whole, newline, _cut_off = self._file.read().rpartition("\n")
        # What a crash has cut off was not confirmed to anybody.
        self._file.truncate(len(whole + newline))
        for line in whole.splitlines():
            station, value = line.split()
            self._keep(station, float(value))

    def _append(self, line: str) -> None:
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            os._exit(1)  # nobody knows what is in the file now; systemd starts us anew

    def _keep(self, station: str, value: float) -> int:
        self._count += 1
        values = self._values.setdefault(station, [])
        values.append(value)
        return len(values)


def answer(readings: Readings, line: str) -> str:
    """Do what a line says."""
    if found := RECORD.fullmatch(line):
        return readings.record(found[1], found[2])
    if found := MEAN.fullmatch(line):
        return readings.mean(found[1])
    return "ERROR say RECORD STATION VALUE or MEAN STATION"


def serve(connection: socket.socket, readings: Readings, places: threading.Semaphore) -> None:
    """Answer one client until it goes, is silent for too long, or sends what is no line."""
    with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
        while (line := lines.readline(LONGEST_LINE)).endswith(b"\n"):
            connection.sendall(f"{answer(readings, line.decode('ascii', 'replace').strip())}\n".encode())
    places.release()


def tell_systemd() -> None:
    """Say that clients can come: sd_notify(3)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            door.sendto(b"READY=1", address.replace("@", "\0", 1))


def main() -> None:
    """Serve for ever."""
    folder = Path(os.environ.get("STATE_DIRECTORY") or sys.argv[1])
    readings, places = Readings(folder / "readings"), threading.Semaphore(MOST_CLIENTS)
    with socket.create_server(("", PORT), backlog=MOST_CLIENTS) as listener:
        tell_systemd()
        while True:
            places.acquire()  # whoever comes while all are taken waits in the backlog
            connection, _address = listener.accept()
            connection.settimeout(IDLE_SECONDS)
            threading.Thread(target=serve, args=(connection, readings, places), daemon=True).start()


if __name__ == "__main__":
    main()
