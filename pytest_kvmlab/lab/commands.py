"""Commands in a guest, over the channel that its login names; cut short when the guest breaks."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.command import CommandResult
from pytest_kvmlab.drivers.serial import SerialConsole
from pytest_kvmlab.drivers.ssh import SshChannel
from pytest_kvmlab.drivers.ssh_login import SshNotReady
from pytest_kvmlab.errors import CommandFailed, ConfigError, GuestError, KvmlabError
from pytest_kvmlab.lab.machine import Machine
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.spec.resolved import GuestSpec

COMMAND_SECONDS = 60.0
WAIT_SECONDS = 60.0
TAIL_LINES = 20
# What one more question may take where its answer only makes a message better.
LAST_QUESTION_SECONDS = 10.0
# The last try of a wait gets this long, so that it can answer and its answer be told.
LEAST_SECONDS = 1.0
_LONGEST_ATTEMPT = 90.0
_LOOK_SECONDS = 0.5
_LATE_SECONDS = 1.0
_TAIL_CHARACTERS = 4000


class Commands:
    """A guest as far as it runs commands.

    Every `timeout` is in seconds, and is multiplied by the run's timeout scale.

    Args:
        machine: the virtual machine.
        spec: what was asked for, all defaults filled in.
        ssh: the way in over SSH, not yet open.
        timeout_scale: what timeouts are multiplied by.

    Attributes:
        used_ssh: whether a test has had anything done over SSH.
    """

    def __init__(self, machine: Machine, spec: GuestSpec, ssh: SshChannel, *, timeout_scale: float) -> None:
        self.machine = machine
        self.spec = spec
        self.timeout_scale = timeout_scale
        self.used_ssh = False
        self._ssh = ssh

    @property
    def name(self) -> str:
        """The guest's name in its lab."""
        return self.machine.name

    @property
    def ssh(self) -> SshChannel:
        """The SSH channel: `run`, `put`, `get`, `forward`, `client`; connected anew if the guest broke it.

        Raises:
            GuestError: the guest lets nobody in.
        """
        self.used_ssh = True
        self.open_ssh(self.deadline(WAIT_SECONDS))
        return self._ssh

    @property
    def serial(self) -> SerialConsole:
        """The serial line: `run`, `expect`, `send`, `sendline`, `login`, `log`."""
        return self.machine.serial

    @property
    def host_key(self) -> str:
        """The SSH host key that the guest has to show; empty before the first connection if it is learnt."""
        return self._ssh.host_key

    @property
    def connected(self) -> bool:
        """Whether a command would go to the guest at once, without logging in first."""
        match self.spec.login.channel:
            case "ssh":
                return self._ssh.connected
            case "serial":
                on = self.machine.was_on and not self.machine.console.ended
                return on and self.serial.session is not None
            case "none":
                return False

    def deadline(self, timeout: float) -> Deadline:
        """A deadline so many seconds from now, as long as a guest of this run may need them to be."""
        return Deadline(timeout * self.timeout_scale)

    def open_ssh(self, deadline: Deadline) -> None:
        """Connect over SSH as soon as the guest lets us, unless there is a connection.

        Raises:
            GuestError: it does not in time, or never will; the message ends with the console's last lines.
        """
        tries: list[str] = []

        def attempt() -> bool | None:
            try:
                self._ssh.open(min(deadline.remaining, _LONGEST_ATTEMPT))
            except SshNotReady as error:
                tries.append(error.message)
                self.machine.check("ssh")
                return None
            return True

        if self._ssh.connected or until(attempt, deadline):
            return
        raise GuestError(
            f"{self.name} let nobody in over SSH within {deadline.seconds:g} s ({len(tries)} tries)",
            "does it boot? does it start an SSH server? is its network up? try guest.serial",
            phase="ssh",
            looked_at=[f"last try: {tries[-1]}", *self.machine.serial.tail(TAIL_LINES)],
        )

    def run(self, command: str, *, timeout: float = COMMAND_SECONDS) -> CommandResult:
        """Run a command in the guest's shell, over SSH if the guest has it, else over the serial line.

        Args:
            command: a line for the login shell.
            timeout: seconds until the command counts as hanging.

        Returns:
            What it printed and how it ended, whatever its exit status.

        Raises:
            WaitTimeout: it did not end in time; the message says what it had printed.
            GuestError: the guest broke.
            ConfigError: the guest's login has no channel.
        """
        self.used_ssh |= self.spec.login.channel == "ssh"
        deadline, outcome = self.deadline(timeout), "did not end"
        try:
            result = self.ask(command, deadline)
            outcome = "" if result.ok else f"exit status {result.exit_status}"
        except (KvmlabError, AssertionError) as error:
            outcome = type(error).__name__
            raise
        finally:
            self.machine.note("command", command, seconds=deadline.elapsed, outcome=outcome)
        return result

    def succeed(self, command: str, *, timeout: float = COMMAND_SECONDS) -> str:
        """Run a command that has to end with exit status 0.

        Returns:
            Its standard output.

        Raises:
            CommandFailed: another exit status; the message carries command, output and status.
        """
        return self._output_of(self.run(command, timeout=timeout))

    def fail(self, command: str, *, timeout: float = COMMAND_SECONDS) -> str:
        """Run a command that has to end with another exit status than 0.

        Returns:
            Its standard output.

        Raises:
            CommandFailed: it succeeded; the message carries command and output.
        """
        result = self.run(command, timeout=timeout)
        if result.ok:
            raise CommandFailed(told(self.name, result, "anything but 0"))
        return result.stdout

    def ask(self, command: str, deadline: Deadline) -> CommandResult:
        """Run a command that is a question of ours, not the test's: no report shows it.

        Args:
            command: a line for the login shell.
            deadline: for connecting anew, where that is needed, and for the command.
        """
        match self.spec.login.channel:
            case "ssh":
                self.open_ssh(deadline)
                with _cut_short(self.machine, self._ssh.close):
                    result = self._ssh.run(command, timeout=_left(deadline))
            case "serial":
                with _cut_short(self.machine, self.machine.console.close):
                    result = self.serial.run(command, timeout=_left(deadline))
            case "none":
                raise ConfigError(
                    f'{self.name} has no channel for commands: its login says channel = "none"',
                    "use guest.serial.expect, guest.send_keys and guest.screenshot, or give it a login",
                )
        self.machine.answered()
        return result

    def ask_for(self, command: str, deadline: Deadline) -> str:
        """Get the output of a question of ours, which has to end with exit status 0.

        Args:
            command: as for `ask`.
            deadline: as for `ask`.

        Raises:
            CommandFailed: another exit status.
        """
        return self._output_of(self.ask(command, deadline))

    def _output_of(self, result: CommandResult) -> str:
        if not result.ok:
            raise CommandFailed(told(self.name, result, "0"))
        return result.stdout


def told(name: str, result: CommandResult, wanted: str) -> str:
    """Tell a person of a command that ended otherwise than it should have.

    Args:
        name: the guest.
        result: how it ended.
        wanted: the exit status that was asked for.
    """
    output = "\n".join(part for part in (result.stdout, result.stderr) if part)[-_TAIL_CHARACTERS:]
    return (
        f"{name}: {result.command!r} ended with exit status {result.exit_status} "
        f"after {result.duration:.2f} s, wanted {wanted}\n{output.rstrip() or '(no output)'}"
    )


def _left(deadline: Deadline) -> float:
    """Rounded, because messages tell it."""
    return round(max(LEAST_SECONDS, deadline.remaining), 1)


@contextmanager
def _cut_short(machine: Machine, cut: Callable[[], None]) -> Iterator[None]:
    """Wait for a guest's answer no longer than the guest lives.

    Neither channel tells that a kernel panicked or that QEMU stopped: only the timeout would end the wait.

    Raises:
        GuestError: the guest broke; in place of what cutting its channel caused.
    """
    over, found = threading.Event(), list[KvmlabError]()

    def look() -> None:
        while not over.wait(_LOOK_SECONDS):
            if error := _what_broke(machine):
                found.append(error)
                cut()
                return

    watcher = threading.Thread(target=look, name=f"watch {machine.name}", daemon=True)
    watcher.start()
    try:
        yield
    except GuestError as error:
        # A channel may learn of its end sooner than libvirt does.
        if broke := (found[0] if found else until(lambda: _what_broke(machine), Deadline(_LATE_SECONDS))):
            raise broke from error
        raise
    finally:
        over.set()


def _what_broke(machine: Machine) -> KvmlabError | None:
    try:
        machine.check("running")
    except KvmlabError as error:
        return error
    return None
