"""The process of a `LineBuffer`: takes what guests print at once, and hands it on as its owner reads.

Started by its path, with the standard library alone, so that it is there in milliseconds. Its standard input
is the socket of its owner, with whom it ends.
"""

import contextlib
import os
import select
import socket

# What is kept of a line that its owner does not read; then the guest has to wait.
_MOST_SHOWN, _MOST_TYPED = 2**24, 2**16
_PIECE = 2**16
# Before all that waits for a processor: a guest gives it ten milliseconds.
_PRIORITY = 1
_BOTH = 2


class _Line:
    """One serial line: what the guest has shown, for the owner, and the other way round."""

    def __init__(self, guest: socket.socket, owner: socket.socket) -> None:
        self.guest, self.owner = guest, owner
        self.ended = False
        self._shown, self._typed = bytearray(), bytearray()
        guest.setblocking(False)
        owner.setblocking(False)

    def wants(self, end: socket.socket) -> int:
        """What to wait for at one of its ends."""
        if end is self.guest:
            return _events(reads=len(self._shown) < _MOST_SHOWN, writes=bool(self._typed))
        return _events(reads=len(self._typed) < _MOST_TYPED, writes=bool(self._shown))

    def move(self) -> None:
        """Take and hand on what can be, without waiting."""
        with contextlib.suppress(OSError):  # that end is gone, and is seen below
            self._take()
        gone = _is_gone(self.owner)
        self.ended = gone or (_is_gone(self.guest) and not self._shown)

    def _take(self) -> None:
        while len(self._shown) < _MOST_SHOWN and (data := _received(self.guest)):
            self._shown += data
        _hand_on(self._shown, self.owner)
        if len(self._typed) < _MOST_TYPED:
            self._typed += _received(self.owner)
        _hand_on(self._typed, self.guest)

    def close(self) -> None:
        self.guest.close()
        self.owner.close()


def _events(*, reads: bool, writes: bool) -> int:
    return (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if writes else 0)


def _received(end: socket.socket) -> bytes:
    try:
        return end.recv(_PIECE)
    except BlockingIOError:
        return b""


def _is_gone(end: socket.socket) -> bool:
    try:
        return not end.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _hand_on(data: bytearray, end: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while data:
            del data[: end.send(data)]


class _Process:
    """All lines of one owner.

    Args:
        owner: says `line`, with both ends of a new one, or else what is answered when all is handed on.
    """

    def __init__(self, owner: socket.socket) -> None:
        self._owner = owner
        self._lines: dict[int, _Line] = {}
        self._events: dict[int, int] = {}
        self._poll = select.epoll()
        self._poll.register(owner, select.EPOLLIN)

    def serve(self) -> None:
        """Go on until the owner is gone."""
        while True:
            for number, _ in self._poll.poll():
                if number == self._owner.fileno():
                    if not self._hear():
                        return
                elif number in self._lines:
                    self._move(self._lines[number])

    def _hear(self) -> bool:
        said, ends, _, _ = socket.recv_fds(self._owner, 16, _BOTH)
        if len(ends) == _BOTH:
            self._add(_Line(*(socket.socket(fileno=end) for end in ends)))
        elif said:
            for line in {id(each): each for each in self._lines.values()}.values():
                self._move(line)
            self._owner.send(said)
        return bool(said)

    def _add(self, line: _Line) -> None:
        for end in (line.guest, line.owner):
            self._lines[end.fileno()] = line
            self._events[end.fileno()] = line.wants(end)
            self._poll.register(end, line.wants(end))

    def _move(self, line: _Line) -> None:
        line.move()
        for end in (line.guest, line.owner):
            number, wanted = end.fileno(), line.wants(end)
            if line.ended:
                self._poll.unregister(end)
                del self._lines[number], self._events[number]
            elif self._events[number] != wanted:
                self._events[number] = wanted
                self._poll.modify(end, wanted)
        if line.ended:
            line.close()


def main() -> None:
    """Serve whoever is at standard input."""
    with contextlib.suppress(OSError):  # only root is served first
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_PRIORITY))
    with socket.socket(fileno=0) as owner, contextlib.suppress(ConnectionError):
        _Process(owner).serve()


if __name__ == "__main__":
    main()
