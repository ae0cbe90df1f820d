"""Runs commands over a serial line: our side of the conversation that `serial_protocol` describes."""

import math
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers import serial_protocol as protocol
from pytest_kvmlab.drivers.command import CommandResult
from pytest_kvmlab.drivers.console_log import KEPT_BYTES, ConsoleReader, printable
from pytest_kvmlab.errors import GuestError, WaitTimeout

# "Last login: ..." of a successful login may arrive in pieces.
LOGIN_PROMPT = r"(?<!Last )\blogin: *$"
_FIRST_PAUSE_SECONDS = 1.0
_STEP_SECONDS = 10.0
_RECOVERY_SECONDS = 3.0
_BLOCK_SECONDS = 60.0
# An answer's line is shorter than this, so one that arrives in pieces is found in the newest bytes.
_WINDOW_BYTES = 8192
_OUTPUT_LIMIT_BYTES = 64 * 1024 * 1024
_INTERRUPT, _QUIT, _KILL_LINE = b"\x03", b"\x1c", b"\x15"
_SHOWN_LINES = 10


class _Listener(NamedTuple):
    """Who answered: the session it knows, if any, and whether it is our server or a shell's prompt."""

    session: str
    serving: bool


class Session(NamedTuple):
    """A server that reads commands from a serial line: its token, and the number of the last command."""

    token: str
    number: int


class SerialShell:
    """The POSIX shell at the other end of a serial line, and the server that it is taught.

    One command at a time; other threads wait their turn.

    Args:
        reader: the line.
    """

    def __init__(self, reader: ConsoleReader) -> None:
        self._reader = reader
        self._turn = threading.RLock()
        self._seen = bytearray()
        self._position = 0
        self._session = ""
        self._number = 0
        self._serving = False
        self._heard: _Listener | None = None  # who answered last, as long as nobody typed since
        self._broken: GuestError | None = None

    def run(self, command: str, timeout: float, *, own_shell: bool = True) -> CommandResult:
        """Run a command once, in a shell of its own with nothing on standard input.

        Args:
            command: what `$SHELL -c` gets, as over SSH.
            timeout: seconds for the command and the transfer of its output; finding the shell has as many.
            own_shell: False for a copy of the shell on the line, which is there at once.

        Returns:
            Its output, with standard error in `stdout`, and its exit status; 128 + N if signal N ended it.

        Raises:
            WaitTimeout: it did not end in time and was interrupted; the message shows its output so far.
            GuestError: no shell answers, or the shell went away while the command ran.
            ValueError: the command contains a NUL character.
        """
        if "\0" in command:
            raise ValueError("a shell command cannot contain a NUL character")
        with self._turn:
            self._serve(Deadline(timeout))
            self._number += 1
            deadline = Deadline(timeout)
            verb: Literal["r", "e"] = "r" if own_shell else "e"
            request = protocol.run_request(self._number, protocol.escaped(command), verb)
            ended = self._ended(request, deadline) or self._give_up(command, timeout)
            output = self._output(ended, deadline)
        status = -1 if ended.exit_status is None else ended.exit_status
        return CommandResult(command, output.decode("utf-8", "replace"), "", status, deadline.elapsed)

    def leave(self, timeout: float = _STEP_SECONDS) -> None:
        """Give the line back to whoever types: the shell's prompt reappears.

        Args:
            timeout: seconds the shell may take.
        """
        with self._turn:
            self._heard = None
            if self._serving and not self._reader.ended:
                self._serving = False
                self._ask(b": q\n", f":{self._session}:bye:", Deadline(timeout))

    def forget(self) -> None:
        """Forget the shell, because the guest was restarted or reverted; the next command looks for one."""
        with self._turn:
            self._serving, self._heard, self._broken, self._session = False, None, None, ""

    @property
    def session(self) -> Session | None:
        """The server that waits for the next command; None if whoever types has the line."""
        return Session(self._session, self._number) if self._serving else None

    def resume(self, session: Session) -> None:
        """Go on with a server that is there already, because its guest was frozen while it waited."""
        with self._turn:
            self._session, self._number, self._serving = session.token, session.number, True

    def answers(self, deadline: Deadline) -> bool:
        """Ask once whether a shell reads the line.

        Args:
            deadline: how long it may take to answer.
        """
        with self._turn:
            self._heard = self._who(deadline)
            return self._heard is not None

    @property
    def at_login(self) -> bool:
        """Whether a login prompt is the last that the line shows."""
        return bool(re.search(LOGIN_PROMPT, "".join(self._reader.tail(1))))

    # --- the line -------------------------------------------------------------------------------------------

    def _send(self, request: bytes, deadline: Deadline) -> None:
        self._seen.clear()
        self._position = self._reader.end
        self._reader.write(request, deadline)

    def _ask(self, request: bytes, answer: str, deadline: Deadline) -> re.Match[bytes] | None:
        self._send(request, deadline)
        return self._hear(answer, deadline)

    def _hear(self, answer: str, deadline: Deadline, quiet: float = math.inf) -> re.Match[bytes] | None:
        """Wait for an answer; None if it does not come in time, or the line is quiet for so many seconds."""
        pattern = protocol.line_pattern(answer)
        window = bytes(self._seen)
        while True:
            found = pattern.search(window) or pattern.search(protocol.cleaned(window))
            if found:
                return found
            data, self._position = self._reader.read(self._position, _within(quiet, deadline))
            if not data:
                self._check_alive()
                return None
            window = bytes(self._seen[-_WINDOW_BYTES:]) + data
            self._seen += data
            del self._seen[:-KEPT_BYTES]

    def _check_alive(self) -> None:
        if self._reader.ended:
            raise self._failed("the guest's serial line has ended", "it went down: see its console log")

    def _failed(self, what: str, hint: str) -> GuestError:
        return GuestError(what, hint, phase="serial", looked_at=self._reader.tail(_SHOWN_LINES))

    # --- the session: find a shell, teach it, enter ---------------------------------------------------------

    def _serve(self, deadline: Deadline) -> None:
        if self._broken:
            raise self._broken
        if self._serving:
            return
        since = self._reader.end
        for pause in _pauses(deadline):
            self._check_logged_in()  # before anything is typed there as a user's name
            listener, self._heard = self._heard or self._who(pause), None
            if listener and self._enter(listener, deadline):
                self._serving = True
                return
        if self._login_prompts(since):  # its prompt came later than what was typed there
            raise self._not_logged_in()
        raise self._failed(
            f"no shell answered on the serial line within {deadline.seconds:g} s",
            "does another program read there, or has the guest not started a shell on its serial port?",
        )

    def _who(self, deadline: Deadline) -> _Listener | None:
        nonce = _random()
        prompt = f":{nonce}:(?P<prompt>[0-9a-f]*):[0-9]*:"
        server = f":(?P<server>[0-9a-f]+):p:{nonce}:"
        found = self._ask(_KILL_LINE + protocol.probe(nonce), f"{prompt}|{server}", deadline)
        if not found:
            return None
        return _Listener((found["server"] or found["prompt"]).decode(), found["server"] is not None)

    def _enter(self, listener: _Listener, deadline: Deadline) -> bool:
        """Start the server, teaching it first if need be; False if something got lost on the way."""
        known = bool(self._session) and listener.session == self._session
        if listener.serving and known:
            return True
        if listener.serving:  # a server of an earlier owner of the line
            self._ask(b": q\n", f":{listener.session}:bye:", _within(_STEP_SECONDS, deadline))
        if not known and not self._teach(deadline):
            return False
        answer = f":{self._session}:serve:"
        return bool(self._ask(b" _kl_serve\n", answer, _within(_STEP_SECONDS, deadline)))

    def _teach(self, deadline: Deadline) -> bool:
        session, nonce = _random(), _random()
        command, lines = protocol.loader(session, nonce)
        if not self._ask(command, f":{nonce}load:", _within(_STEP_SECONDS, deadline)):
            return False
        found = self._ask(b"".join(lines), protocol.taught_pattern(session), _within(_STEP_SECONDS, deadline))
        if found and (lacks := protocol.parsed_lacks(found)):
            raise self._failed(
                f"the guest cannot run commands over its serial line, it lacks: {', '.join(lacks)}",
                "it needs od, dd, gzip and base64, and as folder a writable /tmp, /run or /dev/shm",
            )
        self._session = session
        return found is not None

    def _login_prompts(self, since: int) -> bool:
        shown, _ = self._reader.read(since, Deadline(0))
        return bool(re.search(LOGIN_PROMPT.removesuffix("$"), shown.decode("utf-8", "replace")))

    def _check_logged_in(self) -> None:
        if self.at_login:
            raise self._not_logged_in()

    def _not_logged_in(self) -> GuestError:
        return self._failed(
            "the serial line shows a login prompt", "log in first: serial.login(user, password)"
        )

    # --- one command ----------------------------------------------------------------------------------------

    def _ended(self, request: Sequence[bytes], deadline: Deadline) -> protocol.Ended | None:
        """Send a request until it is answered; None if the command does not end in time.

        Whenever it is silent for long, a probe follows. The line keeps the order, so its answer tells what
        became of the request: the command still runs (no answer), it ran and its answer was lost, or it never
        ran. (A command that reads /dev/tty would read the probe: there is only one line.)
        """
        self._deliver(request, deadline)
        nonce = _random()
        for pause in _pauses(deadline):
            found = self._hear(self._answers(nonce), pause)
            if not found:
                nonce = _random()
                self._reader.write(protocol.probe(nonce), deadline)
            elif found["length"]:
                if ended := protocol.parsed_ended(found):
                    return self._undisturbed(ended)
                self._send(b": g %d\n" % self._number, deadline)
            elif found["prompt"] is not None:
                raise self._lost("the shell on the serial line ended or was interrupted while a command ran")
            elif found["last"] == b"%d" % self._number:
                self._send(b": g %d\n" % self._number, deadline)
            else:
                self._deliver(request, deadline)
            self._check_still_logged_in()
        return None

    def _deliver(self, request: Sequence[bytes], deadline: Deadline) -> None:
        """Send a request's lines, never more than the guest's terminal can hold unread."""
        many = protocol.SYNC_AFTER_LINES
        while len(request) > many:
            nonce = _random()
            lines = b"".join(request[:many]) + b": p %b\n" % nonce.encode()
            self._ask(lines, f":{self._session}:p:{nonce}:", _within(_STEP_SECONDS, deadline))
            request = request[many:]
        self._send(b"".join(request), deadline)

    def _answers(self, nonce: str) -> str:
        ended = protocol.ended_pattern(self._session, self._number)
        damaged = f":{self._session}:l:{self._number}:"
        alive = f":{self._session}:p:{nonce}:(?P<last>[0-9]*):"
        return f"{ended}|{damaged}|{alive}|:{nonce}:(?P<prompt>[0-9a-f]*):[0-9]*:"

    def _undisturbed(self, ended: protocol.Ended) -> protocol.Ended:
        if ended.exit_status is None:
            raise self._lost("a command on the serial line was interrupted")
        return ended

    def _check_still_logged_in(self) -> None:
        try:
            self._check_logged_in()
        except GuestError:
            raise self._lost(
                "the shell on the serial line ended while a command ran; a login prompt follows"
            ) from None

    def _lost(self, what: str) -> GuestError:
        error = self._failed(
            f"{what}; how far it got is unknown", "does the command end its parent, or the guest?"
        )
        self.forget()
        return error

    # --- its output -----------------------------------------------------------------------------------------

    def _output(self, ended: protocol.Ended, deadline: Deadline) -> bytes:
        if ended.complete:
            return ended.head
        output = bytearray()
        count = full = protocol.BLOCK_UNITS
        while True:
            block = self._block(len(output) // protocol.UNIT_BYTES, count, deadline)
            if block is None:
                count = max(1, count // 2)  # what disturbs the line leaves room for something smaller
                continue
            output += block
            if len(block) < count * protocol.UNIT_BYTES:
                self._reader.write(b": x\n", deadline)
                return bytes(output)
            if len(output) > _OUTPUT_LIMIT_BYTES:
                raise self._failed(
                    "a command printed more than the serial line carries", "write it to a file"
                )
            count = min(full, count * 2)

    def _block(self, skip: int, count: int, deadline: Deadline) -> bytes | None:
        """Ask for one block of output; None if it arrived damaged."""
        request = b": b %d %d %d\n" % (self._number, skip, count)
        end = protocol.block_end(self._session, self._number, skip, count)
        for pause in _pauses(deadline):
            self._send(request, deadline)
            # A slow guest sends for longer than a pause; to ask it again would only make it slower.
            if self._hear(end, _within(_BLOCK_SECONDS, deadline), quiet=pause.seconds):
                return protocol.parsed_block(bytes(self._seen), self._session, self._number, skip, count)
        raise WaitTimeout(f"a command ended, but not all of its output arrived within {deadline.seconds:g} s")

    # --- its end in time ------------------------------------------------------------------------------------

    def _give_up(self, command: str, timeout: float) -> protocol.Ended:
        """Interrupt the command, win the shell back, and say what the command had printed."""
        self._serving = False
        for key in (_INTERRUPT, _QUIT):
            try:
                self._reader.write(key, Deadline(1))
                self._serve(Deadline(_RECOVERY_SECONDS))
                break
            except GuestError:
                continue
        else:
            self._broken = self._failed(
                "the shell on the serial line did not come back from an earlier command that took too long",
                f"the command was: {command}",
            )
        told = f"after {timeout:g} s this had not ended in the guest: {command}"
        if self._broken:
            raise WaitTimeout(
                "\n".join([f"{told}\nand the shell did not come back:", *self._broken.looked_at])
            )
        raise WaitTimeout("\n".join([f"{told}\nit had printed:", *self._so_far()]))

    def _so_far(self) -> list[str]:
        """The last lines of an interrupted command's output."""
        answer = protocol.ended_pattern(self._session, self._number)
        found = self._ask(b": g %d\n" % self._number, answer, Deadline(_RECOVERY_SECONDS))
        ended = protocol.parsed_ended(found) if found else None
        try:
            output = self._output(ended, Deadline(_RECOVERY_SECONDS)) if ended else b"(unknown)"
        except (GuestError, WaitTimeout):
            output = b"(too much to show)"
        return [printable(line) for line in output.splitlines()[-_SHOWN_LINES:]] or ["(nothing)"]


def _random() -> str:
    return secrets.token_hex(8)


def _within(seconds: float, deadline: Deadline) -> Deadline:
    return Deadline(min(seconds, deadline.remaining))


def _pauses(deadline: Deadline) -> Iterator[Deadline]:
    """Longer and longer waits, until the time is over."""
    pause = _FIRST_PAUSE_SECONDS
    while not deadline.passed:
        yield _within(pause, deadline)
        pause *= 2
