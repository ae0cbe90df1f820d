"""The reading end of a guest's serial line: it never stops reading, whoever listens.

A guest whose serial port is not emptied stands still as soon as QEMU's buffers are full, so one thread per
guest takes every byte at once and keeps it three times: the newest in memory (for `expect`, for reports), all
of them in `NAME.raw`, and as timestamped lines without any control character in `NAME`.
"""

import contextlib
import os
import re
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.echo import SecretEcho
from pytest_kvmlab.errors import GuestError, HostError

KEPT_BYTES = 256 * 1024
LOG_LIMIT_BYTES = 64 * 1024 * 1024
_LONGEST_LINE_BYTES = 4096
_RECEIVE_BYTES = 65536
_CATCH_UP_SECONDS = 0.01  # a line on which more has arrived is being read just now


def printable(data: bytes | bytearray) -> str:
    r"""Show console bytes without anything a terminal would obey.

    Args:
        data: bytes as the guest sent them.

    Returns:
        Printable characters and tabs as they are, everything else as `\x1b` or `\u202e`; what is not UTF-8
        appears byte by byte.
    """
    text = data.decode("utf-8", "surrogateescape")
    return "".join(char if char.isprintable() or char == "\t" else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that surrogateescape could not decode
        code -= 0xDC00
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def transcript_of(log: Path) -> Path:
    """Where the bytes go, as they were received, whose lines are in a console log."""
    return log.with_name(f"{log.name}.raw")


class _AppendOnly:
    """A file that neither a full disk nor a babbling guest can turn into an error."""

    def __init__(self, path: Path, limit: int) -> None:
        self._left = limit
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(
                f"the console log cannot be opened: {error.strerror}",
                "choose another folder with --kvm-artifacts",
                looked_at=[path],
            ) from error

    def append(self, data: bytes) -> bool:
        """Write all of it; False if the disk or the limit did not let us."""
        self._left = self._left - len(data) if len(data) <= self._left else 0
        return self._left > 0 and self._write(data)

    def close(self, last: bytes = b"") -> None:
        self._write(last)
        os.close(self._file)

    def _write(self, data: bytes) -> bool:
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            return False
        return True


class _LineLog:
    """The timestamped log: whole lines, escaped, with a note where some are missing."""

    def __init__(self, path: Path, limit: int) -> None:
        self._file = _AppendOnly(path, limit)
        self._started = time.monotonic()
        self._line = bytearray()
        self._line_began = 0.0
        self._missing = 0

    def feed(self, data: bytes) -> None:
        for piece in data.splitlines(keepends=True):
            if not self._line:
                self._line_began = time.monotonic() - self._started
            self._line += piece
            if piece.endswith(b"\n") or len(self._line) >= _LONGEST_LINE_BYTES:
                self._end_line()

    def _end_line(self) -> None:
        text = printable(self._line.rstrip(b"\r\n"))
        line = f"[{self._line_began:9.3f}] {text}\n"
        self._line.clear()
        written = self._file.append((self._note() + line).encode())
        self._missing = 0 if written else self._missing + 1

    def _note(self) -> str:
        return f"[{self._missing} lines could not be written]\n" if self._missing else ""

    def close(self) -> None:
        if self._line:
            self._end_line()
        self._file.close(self._note().encode())


class ConsoleReader:
    """Reads one guest's serial line until it ends, keeps it, and lets others wait for what comes.

    Args:
        line: the connected socket of the serial port; owned by the reader from here on.
        log: where the timestamped lines go; the bytes as received go beside it, with `.raw` appended.
        limit: bytes after which each file ends, so that a guest cannot fill the host's disk.
        before: what the line had shown when the guest was frozen; the files have it already.
        arrive: waits until what the guest has sent is at the line.

    Raises:
        HostError: a log file cannot be opened.
    """

    def __init__(
        self,
        line: socket.socket,
        log: Path,
        *,
        limit: int = LOG_LIMIT_BYTES,
        before: bytes = b"",
        arrive: Callable[[Deadline], None] = lambda _: None,
    ) -> None:
        self._raw_path = transcript_of(log)
        self._lines = _LineLog(log, limit)
        self._raw = _AppendOnly(self._raw_path, limit)
        self._line = line
        self._arrive = arrive
        self._echo = SecretEcho()
        line.setblocking(False)
        self._kept = bytearray(before[-KEPT_BYTES:])
        self._dropped = len(before) - len(self._kept)
        self._unwritten = bytearray()
        self._ended = False
        self._news = threading.Condition()
        self._taking = threading.Lock()  # held from the moment that bytes leave the line until they are kept
        self._thread = threading.Thread(target=self._drain, name=f"console {log.name}", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the line was closed, by the guest or by us."""
        return self._ended

    @property
    def end(self) -> int:
        """How many bytes were received so far: the position of the next one."""
        with self._news:
            return self._dropped + len(self._kept)

    def read(self, position: int, deadline: Deadline) -> tuple[bytes, int]:
        """Take what was received from a position on, waiting until there is something.

        Args:
            position: where to start, as this method or `end` gave it; what left the memory is skipped.
            deadline: how long to wait.

        Returns:
            The bytes and the position after them; no bytes if the time is over or the line has `ended`.
        """
        with self._news:
            self._news.wait_for(lambda: self._ended or self._received > position, _finite(deadline.remaining))
            return bytes(self._kept[max(0, position - self._dropped) :]), self._received

    def wait_for(self, pattern: re.Pattern[str], deadline: Deadline) -> re.Match[str] | None:
        """Wait until the console has shown a pattern; what is still in memory counts.

        Args:
            pattern: searched in the text of the newest 256 KiB.
            deadline: how long to wait.

        Returns:
            The match, or None if the time is over or the line has ended without it.
        """
        position = 0
        while True:
            data, position = self.read(position, deadline)
            with self._news:
                found = pattern.search(self._kept.decode("utf-8", "replace"))
            if found or not data:
                return found

    def catch_up(self, deadline: Deadline) -> None:
        """Wait until all that has arrived on the line is kept, in memory and in the files.

        What a guest printed before it answered over another channel has arrived: the serial port hands each
        byte to the line as the guest writes it.

        Args:
            deadline: how long to wait for the end of what a guest prints without pause.
        """
        self._arrive(deadline)
        with self._news:
            while not self._ended and self._has_more() and not deadline.passed:
                self._news.wait(_CATCH_UP_SECONDS)
        with self._taking:
            pass

    def unwritten(self) -> bytes:
        """Take the newest of what came since the last call and is in no file, because that is full."""
        with self._taking:
            newest, self._unwritten = bytes(self._unwritten), bytearray()
        return newest

    def write(self, data: bytes, deadline: Deadline) -> None:
        """Send bytes to the guest.

        Args:
            data: what to send.
            deadline: how long the guest may take to accept it.

        Raises:
            GuestError: the line was closed, or the guest took too long.
        """
        if self._line.fileno() < 0:
            raise self._failed("the guest's serial line is closed")
        poll = select.poll()
        poll.register(self._line, select.POLLOUT)
        try:
            while data:
                if not poll.poll(_milliseconds(deadline.remaining)):
                    raise self._failed("the guest does not read its serial line")
                data = data[self._line.send(data) :]
        except OSError as error:
            raise self._failed("the guest's serial line is closed") from error

    def hide_echo(self, secret: bytes) -> None:
        """Keep the echo of a secret, that is written next, out of the logs and from whoever reads here.

        Args:
            secret: what is written next, without its newline.
        """
        self._echo.expect(secret)

    def tail(self, lines: int, *, since: int = 0) -> list[str]:
        """Show the newest lines.

        Args:
            lines: how many at most.
            since: the position, as `end` gave it, from which on they are of interest.

        Returns:
            Lines without control characters, newest last; the last one may be unfinished.
        """
        with self._news:
            newest = bytes(self._kept[max(0, since - self._dropped) :]).splitlines()[-lines:]
        return [printable(line) for line in newest]

    def text(self) -> str:
        """Everything the guest has sent, as it was sent; what is not UTF-8 becomes U+FFFD."""
        return self._raw_path.read_bytes().decode("utf-8", "replace")

    def close(self) -> None:
        """Close the line and the files; nothing is received afterwards. May be called twice."""
        with contextlib.suppress(OSError):  # the other side was faster
            self._line.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._line.close()

    @property
    def _received(self) -> int:
        return self._dropped + len(self._kept)

    def _failed(self, what: str) -> GuestError:
        return GuestError(what, "see the console log", phase="serial", looked_at=self.tail(10))

    def _drain(self) -> None:
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        try:
            while self._take(poll):
                pass
        finally:
            self._raw.close()
            self._lines.close()
            with self._news:
                self._ended = True
                self._news.notify_all()

    def _take(self, poll: select.poll) -> bool:
        """Wait for bytes and keep them; False at the end of the line."""
        poll.poll()
        with self._taking:
            if received := self._receive():
                data = self._echo.cut(received)
                if not self._raw.append(data):
                    self._unwritten = (self._unwritten + data)[-KEPT_BYTES:]
                self._lines.feed(data)
                self._keep(data)  # last: what somebody has seen is in the files
        return bool(received)

    def _has_more(self) -> bool:
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        return bool(poll.poll(0))

    def _receive(self) -> bytes:
        try:
            return self._line.recv(_RECEIVE_BYTES)
        except OSError:
            return b""

    def _keep(self, data: bytes) -> None:
        with self._news:
            self._kept += data
            surplus = max(0, len(self._kept) - KEPT_BYTES)
            del self._kept[:surplus]
            self._dropped += surplus
            self._news.notify_all()


def _finite(seconds: float) -> float:
    return min(seconds, threading.TIMEOUT_MAX)


def _milliseconds(seconds: float) -> int:
    return int(min(seconds, 86400) * 1000)
