#!/usr/bin/python3
"""The client of the licence server: shows its state, or runs a program while it holds a seat."""

import argparse
import select
import socket
import subprocess
import sys

ANSWER_SECONDS = 10
LOOK_SECONDS = 0.2
REFUSED, UNREACHABLE = 3, 4


class Connection:
    """A connection to the server, line by line."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), ANSWER_SECONDS)
        self._lines = self._socket.makefile("r", encoding="ascii", errors="replace", newline="\n")

    def ask(self, request: str) -> str:
        """Send a line and wait for the answer.

        Raises:
            OSError: there is none.
        """
        self._socket.sendall(f"{request}\n".encode())
        return self.heard()

    def heard(self) -> str:
        """Wait for a line.

        Raises:
            OSError: there is none.
        """
        if not (line := self._lines.readline(256)).endswith("\n"):
            raise ConnectionError("the server has hung up")
        return line.strip()

    def says_something(self, seconds: float) -> bool:
        """Wait a while for the server to say something unasked, or to go."""
        return bool(select.select([self._socket], [], [], seconds)[0])


def tell(line: str) -> None:
    """Keep what is ours apart from the output of the program."""
    sys.stderr.write(f"{line}\n")


def run(connection: Connection, name: str, command: list[str]) -> int:
    """Run a program, and end it if the seat is lost; returns an exit status."""
    answer = connection.ask(f"CHECKOUT {name}")
    tell(answer)
    if not answer.startswith("GRANTED"):
        return REFUSED
    program = subprocess.Popen(command)
    while program.poll() is None:
        if connection.says_something(LOOK_SECONDS):
            program.terminate()
            program.wait()
            tell(connection.heard())
            return REFUSED
    return program.returncode


def main() -> int:
    """Do what the command line says; returns an exit status."""
    parser = argparse.ArgumentParser(description="Asks the licence server.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=2110)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("status", help="show what the server has")
    runner = verbs.add_parser("run", help="run a program while holding a seat")
    runner.add_argument("name", help="who asks")
    runner.add_argument("command", nargs="+", help="the program and its arguments, after --")
    arguments = parser.parse_args()
    try:
        connection = Connection(arguments.host, arguments.port)
        if arguments.verb == "run":
            return run(connection, arguments.name, arguments.command)
        sys.stdout.write(f"{connection.ask('STATUS')}\n")
    except OSError as error:
        tell(f"licence: {arguments.host}:{arguments.port}: {error}")
        return UNREACHABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
