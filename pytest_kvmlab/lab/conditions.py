"""What a test may wait for in a guest. Each wait that fails says what was seen instead."""

import re
import shlex

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.command import CommandResult
from pytest_kvmlab.drivers.ssh import SshLost
from pytest_kvmlab.errors import WaitTimeout
from pytest_kvmlab.lab.commands import LAST_QUESTION_SECONDS, TAIL_LINES, WAIT_SECONDS, Commands, told
from pytest_kvmlab.lab.waits import until

_CHECK_SECONDS = 0.5
_CONNECTION_SECONDS = 10.0


class Conditions(Commands):
    """A guest as far as it can be waited for."""

    def ask_again(self, command: str, deadline: Deadline) -> CommandResult:
        """Ask what may be asked twice: what was waited for may break a connection, or be a reboot.

        Args:
            command: as for `ask`.
            deadline: as for `ask`.
        """
        try:
            return self.ask(command, deadline)
        except SshLost:
            return self.ask(command, deadline)

    def wait_until_succeeds(self, command: str, *, timeout: float = WAIT_SECONDS) -> str:
        """Run a command again and again until it ends with exit status 0.

        Returns:
            Its standard output, the last time.

        Raises:
            WaitTimeout: it never did; the message says what the last try printed.
        """
        deadline = self.deadline(timeout)
        last: list[CommandResult] = []

        def attempt() -> CommandResult | None:
            last[:] = [self.ask_again(command, deadline)]
            return last[0] if last[0].ok else None

        if succeeded := until(attempt, deadline, every=0.2):
            return succeeded.stdout
        raise WaitTimeout(f"within {deadline.seconds:g} s: {told(self.name, last[0], '0')}")

    def wait_for_unit(self, unit: str, *, timeout: float = WAIT_SECONDS) -> None:
        """Wait until a systemd unit is active.

        Raises:
            WaitTimeout: it is not; at once if it failed. The message ends with the unit's last log lines.
        """
        deadline, quoted = self.deadline(timeout), shlex.quote(unit)
        question = f"systemctl show --property=ActiveState --value -- {quoted}"

        def attempt() -> str | None:
            state = self.ask_again(question, deadline).stdout.strip()
            return state if state in ("active", "failed") else None

        if (state := until(attempt, deadline, every=0.2)) != "active":
            log = self._last_question(f"journalctl --no-pager -n {TAIL_LINES} -u {quoted}")
            raise WaitTimeout(
                f"unit {unit} of {self.name} is {state or 'not active'} after {deadline.elapsed:.1f} s\n{log}"
            )

    def wait_for_port(self, port: int, *, timeout: float = WAIT_SECONDS) -> None:
        """Wait until something in the guest listens on a TCP port.

        A guest with a shell is asked for its listening sockets (proc(5), /proc/net/tcp). A port of another
        counts as open if a connection to it lasts: user-mode networking itself always accepts.

        Raises:
            WaitTimeout: nobody does; the message lists the ports that are listened on.
        """
        deadline = self.deadline(timeout)
        seen: list[set[int]] = []

        def attempt() -> bool | None:
            seen[:] = [self._listening(port, deadline)]
            return True if port in seen[0] else None

        if not until(attempt, deadline, every=0.1):
            found = ", ".join(map(str, sorted(seen[0]))) or "none"
            raise WaitTimeout(
                f"nothing listens on port {port} of {self.name} after {deadline.elapsed:.1f} s; "
                f"open ports: {found}"
            )

    def _listening(self, port: int, deadline: Deadline) -> set[int]:
        if self.spec.login.channel == "none":
            seconds = min(_CONNECTION_SECONDS, deadline.remaining)
            return {port} if self.machine.answers(port, seconds) else set()
        return listening_ports(
            self.ask_again("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null", deadline).stdout
        )

    def wait_for_file(self, path: str, *, timeout: float = WAIT_SECONDS) -> None:
        """Wait until a file or folder exists in the guest.

        Raises:
            WaitTimeout: it does not; the message lists its folder.
        """
        deadline, quoted = self.deadline(timeout), shlex.quote(path)

        def attempt() -> bool | None:
            return True if self.ask_again(f"test -e {quoted}", deadline).ok else None

        if not until(attempt, deadline, every=0.1):
            folder = self._last_question(f'ls -la -- "$(dirname -- {quoted})"')
            raise WaitTimeout(
                f"there is no {path} on {self.name} after {deadline.elapsed:.1f} s; its folder:\n{folder}"
            )

    def wait_for_console(self, pattern: str, *, timeout: float = WAIT_SECONDS) -> None:
        """Wait until the serial console has shown a match of a regular expression since power-on.

        Raises:
            WaitTimeout: it has not; the message ends with what it did show.
            GuestError: the guest panicked or switched itself off meanwhile.
        """
        wanted, deadline = re.compile(pattern, re.MULTILINE), self.deadline(timeout)

        def attempt() -> bool | None:
            if self.machine.console.wait_for(wanted, Deadline(min(_CHECK_SECONDS, deadline.remaining))):
                return True
            self.machine.check("boot")
            return None

        if not until(attempt, deadline, every=0):
            tail = "\n".join(self.machine.serial.tail(TAIL_LINES)) or "(nothing)"
            raise WaitTimeout(
                f"the console of {self.name} showed no {pattern!r} within {deadline.seconds:g} s; "
                f"its last lines:\n{tail}"
            )

    def _last_question(self, command: str) -> str:
        return self.ask(f"{command} 2>&1", self.deadline(LAST_QUESTION_SECONDS)).stdout


def listening_ports(table: str) -> set[int]:
    """The TCP ports that are listened on.

    Args:
        table: the content of /proc/net/tcp and /proc/net/tcp6 (0A is LISTEN: linux/include/net/tcp_states.h).
    """
    rows = (line.split() for line in table.splitlines())
    return {int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == "0A"}
