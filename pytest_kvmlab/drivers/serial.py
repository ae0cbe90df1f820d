"""A guest's serial console for a test: what to expect there, what to type, and commands to run."""

import codecs
import contextlib
import re
from typing import TYPE_CHECKING

import pexpect
from pexpect.spawnbase import SpawnBase

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers import serial_protocol as protocol
from pytest_kvmlab.drivers.command import CommandResult
from pytest_kvmlab.drivers.console_log import KEPT_BYTES, ConsoleReader, printable
from pytest_kvmlab.drivers.serial_login import SerialLogin
from pytest_kvmlab.drivers.serial_shell import SerialShell, Session
from pytest_kvmlab.errors import GuestError, SerialMismatch

if TYPE_CHECKING:
    _TextSpawn = SpawnBase[str]
else:
    _TextSpawn = SpawnBase

_SEND_SECONDS = 10.0
_SHOWN_LINES = 20
_LOOKED_THROUGH_LINES = 2000


class _Spawn(_TextSpawn):
    """pexpect over what the reader has received: the reader's thread reads, this only looks."""

    def __init__(self, reader: ConsoleReader, position: int) -> None:
        super().__init__(maxread=KEPT_BYTES, encoding="utf-8", codec_errors="replace")
        self.delayafterread = None
        self._reader = reader
        self._position = position
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> str:  # noqa: ARG002 -- theirs
        """Hand over what came since the last call; pexpect reads through this method."""
        data, self._position = self._reader.read(self._position, Deadline(timeout or 0.0))
        if data:
            return self._text.decode(data)
        if self._reader.ended:
            raise pexpect.EOF("the guest's serial line has ended")
        raise pexpect.TIMEOUT("nothing new on the serial line")


class SerialConsole:
    """The serial console of one guest.

    `expect` looks at what came since its last match, or since the last `run` began.

    Args:
        reader: the guest's serial line.
    """

    def __init__(self, reader: ConsoleReader) -> None:
        self._reader = reader
        self._spawn = _Spawn(reader, 0)
        self._shell = SerialShell(reader)

    @property
    def log(self) -> str:
        """Everything the guest has sent, as it was sent."""
        return self._reader.text()

    def tail(self, lines: int) -> list[str]:
        """The newest lines of the console, without what `run` and the guest's shell said to each other.

        Args:
            lines: how many at most; the last one may be unfinished.
        """
        return protocol.for_people(self._reader.tail(_LOOKED_THROUGH_LINES))[-lines:]

    def run(self, command: str, *, timeout: float = 60.0) -> CommandResult:
        """Run a command in the shell on the serial line; it runs once, whatever happens to the line.

        Args:
            command: shell text, given to `$SHELL -c` with nothing on standard input.
            timeout: seconds for the command and the transfer of its output; finding the shell has as many.

        Returns:
            Its output, with standard error in `stdout`, and its exit status; 128 + N if signal N ended it.

        Raises:
            WaitTimeout: it did not end in time and was interrupted; the message shows its output so far.
            GuestError: no shell answers, or the shell went away while the command ran.
        """
        self._spawn = _Spawn(self._reader, self._reader.end)
        return self._shell.run(command, timeout)

    def run_at_once(self, command: str, *, timeout: float) -> CommandResult:
        """Run a command of ours as `run` does, but in a copy of the shell on the line.

        To start a shell takes an emulated guest a good part of the time in which it becomes a clean one.

        Args:
            command: shell text; it may use nothing that an interactive shell takes for something else.
            timeout: as for `run`.
        """
        return self._shell.run(command, timeout, own_shell=False)

    def expect(self, pattern: str | re.Pattern[str], *, timeout: float = 30.0) -> re.Match[str]:
        """Wait until the serial line shows a pattern.

        Args:
            pattern: a regular expression; unless it is compiled, `.` matches a newline too, as in pexpect.
            timeout: seconds to wait.

        Returns:
            The match.

        Raises:
            SerialMismatch: it did not appear in time; the message ends with the last lines.
            GuestError: the line ended before it appeared.
        """
        outcome = self._spawn.expect([pattern, pexpect.TIMEOUT, pexpect.EOF], timeout=timeout)
        if outcome == 0 and isinstance(self._spawn.match, re.Match):
            return self._spawn.match
        wanted = pattern if isinstance(pattern, str) else pattern.pattern
        lines = self._unmatched()
        if outcome == 2:
            raise GuestError(
                f"the serial line ended before it showed {wanted!r}",
                "the guest went down: see its console log",
                phase="serial",
                looked_at=lines,
            )
        shown = lines or ["(nothing)"]
        raise SerialMismatch(
            "\n".join(
                [f"the serial line did not show {wanted!r} within {timeout:g} s; its last lines:", *shown]
            )
        )

    def send(self, text: str) -> None:
        """Type text, without a newline.

        Args:
            text: what to type.

        Raises:
            GuestError: the guest does not read its serial line, or the line has ended.
        """
        self._shell.leave()
        self._reader.write(text.encode(), Deadline(_SEND_SECONDS))

    def sendline(self, text: str = "") -> None:
        """Type text and a newline.

        Args:
            text: what to type.

        Raises:
            GuestError: the guest does not read its serial line, or the line has ended.
        """
        self.send(text + "\n")

    def login(self, user: str, password: str | None = None, *, timeout: float = 60.0) -> None:
        """Log in at a getty; nothing is done where a shell answers already.

        The password appears in no log, even if the guest repeats it.

        Args:
            user: the account.
            password: its password; None where the guest asks for none.
            timeout: seconds until a shell must answer.

        Raises:
            GuestError: the login was refused, a password is missing, or no login prompt and no shell came.
        """
        self._shell.leave()
        SerialLogin(user, password, self._reader, self._spawn, self._shell).until_a_shell(Deadline(timeout))

    def forget(self) -> None:
        """Forget what is known of the guest's shell: call it after a reboot, a reset or a revert."""
        self._shell.forget()

    @property
    def session(self) -> Session | None:
        """What a guest that is frozen now will answer to: see `resume`."""
        return self._shell.session

    def resume(self, session: Session) -> None:
        """Go on with the server of commands that a guest had when it was frozen."""
        self._shell.resume(session)

    def close(self) -> None:
        """Give the line back, if the guest still answers, and close it."""
        with contextlib.suppress(GuestError):  # it is gone already
            self._shell.leave(timeout=1.0)
        self._reader.close()

    def _unmatched(self) -> list[str]:
        seen = self._spawn.before if isinstance(self._spawn.before, str) else ""
        return [printable(line.encode()) for line in seen.splitlines()[-_SHOWN_LINES:]]
