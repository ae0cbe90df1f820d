"""Logs in at a getty on a serial line, or finds that a shell is there already."""

from typing import TYPE_CHECKING

import pexpect

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.console_log import ConsoleReader
from pytest_kvmlab.drivers.echo import HIDDEN
from pytest_kvmlab.drivers.serial_shell import LOGIN_PROMPT, SerialShell
from pytest_kvmlab.errors import GuestError

if TYPE_CHECKING:
    from pexpect.spawnbase import SpawnBase

_SEND_SECONDS = 10.0
_SHOWN_LINES = 20
_PAUSE_SECONDS = 1.0
# busybox asks for the password first, and switches the terminal's echo off then.
_ECHO_OFF_SECONDS = 0.3
# PAM and busybox sit still for 3 s after a wrong password; what is typed then would be the next user's name.
_THINKING_PAUSES = 4
_STEPS = {
    "login": LOGIN_PROMPT,
    "password": r"[Pp]assword: *$",
    "refused": r"[Ll]ogin incorrect|[Aa]uthentication failure",
    # What may be a shell's prompt is asked at once; what looks otherwise, after a silence.
    "prompt": r"[#$%>] (?:\x1b\[[0-9;?]*[A-Za-z])*$",
}


class SerialLogin:
    """One login.

    A silent line is asked whether a shell is there. If a getty starts there instead, or is slow, it takes the
    question for a name and a password; so many refusals are not the user's. Nor does it
    read an answer before it has read all of that.

    Args:
        user: the account.
        password: its password; None where the guest asks for none.
        reader: the serial line.
        spawn: pexpect on what it shows.
        shell: who may be there already, and is there afterwards.
    """

    def __init__(
        self,
        user: str,
        password: str | None,
        reader: ConsoleReader,
        spawn: "SpawnBase[str]",
        shell: SerialShell,
    ) -> None:
        self._user = user
        self._password = password
        self._reader = reader
        self._spawn = spawn
        self._shell = shell
        self._answers = self._all_answers()
        self._shown = ""
        self._is_asked = False
        self._unanswered = 0
        self._silent = 0
        self._patience = _THINKING_PAUSES

    def until_a_shell(self, deadline: Deadline) -> None:
        """Log in.

        Args:
            deadline: when a shell must have answered.

        Raises:
            GuestError: the login was refused, a password is missing, or no login prompt and no shell came.
        """
        if self._shell.at_login:
            self._spawn.expect([LOGIN_PROMPT, pexpect.TIMEOUT], timeout=0)  # unless somebody has expected it
            self._answer("login", deadline)
        while not deadline.passed:
            step = self._step(deadline)
            if step == "refused":
                self._was_refused("was refused")
            elif step == "login" or (step == "password" and self._named):
                self._answer(step, deadline)
            elif step == "silence" and self._shown == "password" and not self._named:
                self._type("")  # something else was typed as a name: back to the login prompt
                self._went_unanswered()
            elif step in ("prompt", "silence") and self._is_shell(deadline):
                return
        raise self._failed(f"did not lead to a shell within {deadline.seconds:g} s")

    @property
    def _named(self) -> bool:
        return "login" not in self._answers

    @property
    def _thinks(self) -> bool:
        """Whether a silent line may still think about what it was told: then nothing more is typed."""
        shown = self._spawn.before if isinstance(self._spawn.before, str) else ""
        own = shown.replace(self._user, "", 1).replace(HIDDEN.decode(), "", 1)
        is_told = not own.strip() if self._named else self._is_asked
        return is_told and self._silent < self._patience

    def _all_answers(self) -> dict[str, str]:
        return {"login": self._user} | ({} if self._password is None else {"password": self._password})

    def _step(self, deadline: Deadline) -> str:
        """Wait for the next thing that a login can show; "silence" if it shows nothing and does not think."""
        wait = _pause(deadline).seconds
        outcome = self._spawn.expect([*_STEPS.values(), pexpect.TIMEOUT, pexpect.EOF], timeout=wait)
        if self._reader.ended:
            raise GuestError(
                "the serial line ended during a login",
                "the guest went down: see its console log",
                phase="serial",
                looked_at=self._reader.tail(_SHOWN_LINES),
            )
        if outcome < len(_STEPS):
            self._silent, self._shown = 0, list(_STEPS)[outcome]
            return self._shown
        self._silent += 1
        return "nothing" if self._thinks else "silence"

    def _is_shell(self, deadline: Deadline) -> bool:
        if self._shell.answers(_pause(deadline)):
            return True
        self._silent = 0
        if not self._named:
            self._went_unanswered()
        return False

    def _went_unanswered(self) -> None:
        """Let a getty that thinks for longer than we waited get to the end of what it was told."""
        self._patience *= 2 if self._unanswered else 1
        self._unanswered += 1
        self._is_asked = True

    def _answer(self, step: str, deadline: Deadline) -> None:
        """Give each answer once: a prompt that comes again says that the first answer was wrong."""
        if step not in self._answers:
            self._was_refused(f"was refused: it asked for a {step} once more than there is one to give")
        if step == "password" or self._unanswered:
            self._wait_for_silence(deadline)
        if step == "login" and not self._shell.at_login:
            return  # it took what had been typed before for a name
        if step == "password":
            self._reader.hide_echo(self._answers[step].encode())
        self._type(self._answers.pop(step))

    def _was_refused(self, how: str) -> None:
        if self._unanswered:
            self._unanswered -= 1
            self._answers = self._all_answers()
        elif self._named:
            raise self._failed(how)

    def _type(self, line: str) -> None:
        self._shell.leave()
        self._reader.write(f"{line}\n".encode(), Deadline(_SEND_SECONDS))

    def _wait_for_silence(self, deadline: Deadline) -> None:
        data, position = b"a prompt", self._reader.end
        while data and not deadline.passed:
            pause = Deadline(min(_ECHO_OFF_SECONDS, deadline.remaining))
            data, position = self._reader.read(position, pause)

    def _failed(self, why: str) -> GuestError:
        return GuestError(
            f"the login of {self._user!r} on the serial line {why}",
            "check `login` of the image",
            phase="serial",
            looked_at=self._reader.tail(_SHOWN_LINES),
        )


def _pause(deadline: Deadline) -> Deadline:
    return Deadline(min(_PAUSE_SECONDS, deadline.remaining))
