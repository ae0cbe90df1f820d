"""A guest and its verbs."""

import re
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.command import CommandResult
from pytest_kvmlab.drivers.relay import Relay
from pytest_kvmlab.drivers.serial import SerialConsole
from pytest_kvmlab.drivers.ssh import SshChannel
from pytest_kvmlab.drivers.ssh_login import SshNotReady
from pytest_kvmlab.drivers.testinfra import testinfra_host
from pytest_kvmlab.errors import CommandFailed, ConfigError, GuestError, WaitTimeout
from pytest_kvmlab.lab.machine import Machine
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.plan.keyboard import key_codes
from pytest_kvmlab.spec.resolved import GuestSpec

if TYPE_CHECKING:
    from testinfra.host import Host as TestinfraHost  # type: ignore[import-untyped] # it carries no types

_COMMAND_SECONDS = 60.0
_WAIT_SECONDS = 60.0
_POWER_SECONDS = 60.0
_CHECK_SECONDS = 0.5
SSH_PORT = 22
_ATTEMPT_SECONDS = 10.0
_LONGEST_ATTEMPT = 60.0
# User-mode networking accepts before the guest can, and such a connection stays silent long after the guest is up.
_LEAST_PATIENCE, _MOST_PATIENCE = 0.4, 10.0
_TAIL_LINES = 20
_TAIL_CHARACTERS = 4000
_SNAPSHOT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


class Guest:
    """A running virtual machine.

    Every `timeout` is in seconds, and is multiplied by the run's timeout scale.

    Attributes:
        spec: what was asked for, all defaults filled in.
        machine: the virtual machine below the verbs.
        image_identity: the SHA-256 of its image, or the path of the file that stands in for it.
        timeout_scale: what timeouts are multiplied by.
    """

    def __init__(
        self,
        machine: Machine,
        spec: GuestSpec,
        ssh: SshChannel,
        image_identity: str,
        *,
        timeout_scale: float,
        prove_ready: "Prover",
    ) -> None:
        self.machine = machine
        self.spec = spec
        self.image_identity = image_identity
        self.timeout_scale = timeout_scale
        self._ssh = ssh
        self._prove_ready = prove_ready
        self._relays: dict[int, Relay] = {}

    def __repr__(self) -> str:
        return f"<guest {self.name!r}, image {self.spec.image!r}>"

    @property
    def name(self) -> str:
        """The guest's name in its lab."""
        return self.machine.name

    @property
    def domain(self) -> Any:
        """Libvirt's own `virDomain`, for what the verbs do not cover."""
        return self.machine.domain.raw

    @property
    def ssh(self) -> SshChannel:
        """The SSH channel: `run`, `put`, `get`, `forward`, `client`; connected anew if the guest broke it.

        Raises:
            GuestError: the guest lets nobody in.
        """
        if not self._ssh.connected:
            self.open_ssh(self._deadline(_WAIT_SECONDS))
        return self._ssh

    @property
    def serial(self) -> SerialConsole:
        """The serial line: `run`, `expect`, `send`, `sendline`, `login`, `log`."""
        return self.machine.serial

    @property
    def testinfra(self) -> "TestinfraHost":
        """A pytest-testinfra host whose commands go where `run` goes.

        Raises:
            ConfigError: pytest-testinfra is not installed.
        """
        return testinfra_host(self.run)

    @property
    def host_key(self) -> str:
        """The SSH host key that the guest has to show; empty before the first connection to one that is learnt."""
        return self._ssh.host_key

    def open_ssh(self, deadline: Deadline) -> None:
        """Connect over SSH as soon as the guest lets us.

        Raises:
            GuestError: it does not in time, or never will; the message ends with the console's last lines.
        """
        tries: list[str] = []

        def attempt() -> bool | None:
            try:
                patience = min(_MOST_PATIENCE, _LEAST_PATIENCE * 1.3 ** len(tries))
                self._ssh.open(min(deadline.remaining, _LONGEST_ATTEMPT), patience=patience)
            except SshNotReady as error:
                tries.append(error.message)
                self.machine.check("ssh")
                return None
            return True

        if not until(attempt, deadline):
            raise GuestError(
                f"{self.name} let nobody in over SSH within {deadline.seconds:g} s ({len(tries)} tries)",
                "does it boot? does it start an SSH server? is its network up? try guest.serial, or a longer timeout",
                phase="ssh",
                looked_at=[
                    f"last try: {tries[-1] if tries else 'none'}",
                    *self.machine.console.tail(_TAIL_LINES),
                ],
            )

    # Commands

    def run(self, command: str, *, timeout: float = _COMMAND_SECONDS) -> CommandResult:
        """Run a command in the guest's shell, over SSH if the guest has it, else over the serial line.

        Args:
            command: a line for the login shell.
            timeout: seconds until the command counts as hanging.

        Returns:
            What it printed and how it ended, whatever its exit status.

        Raises:
            WaitTimeout: it did not end in time; the message says what it had printed.
            GuestError: the guest broke, or has neither channel.
        """
        result = self._run(command, timeout * self.timeout_scale)
        self.machine.journal.note(
            self.name,
            "command",
            command,
            seconds=result.duration,
            outcome="" if result.ok else f"exit status {result.exit_status}",
        )
        return result

    def _run(self, command: str, seconds: float) -> CommandResult:
        match self.spec.login.channel:
            case "ssh":
                return self.ssh.run(command, timeout=seconds)
            case "serial":
                return self.serial.run(command, timeout=seconds)
        raise ConfigError(
            f'{self.name} has no channel for commands: its login says channel = "none"',
            "use guest.serial.expect, guest.send_keys and guest.screenshot, or give it a login",
        )

    def succeed(self, command: str, *, timeout: float = _COMMAND_SECONDS) -> str:
        """Run a command that has to end with exit status 0.

        Returns:
            Its standard output.

        Raises:
            CommandFailed: another exit status; the message carries command, output and status.
        """
        result = self.run(command, timeout=timeout)
        if not result.ok:
            raise CommandFailed(_told(self.name, result, "0"))
        return result.stdout

    def fail(self, command: str, *, timeout: float = _COMMAND_SECONDS) -> str:
        """Run a command that has to end with another exit status than 0.

        Returns:
            Its standard output.

        Raises:
            CommandFailed: it succeeded; the message carries command and output.
        """
        result = self.run(command, timeout=timeout)
        if result.ok:
            raise CommandFailed(_told(self.name, result, "anything but 0"))
        return result.stdout

    # Waiting

    def wait_until_succeeds(self, command: str, *, timeout: float = _WAIT_SECONDS) -> str:
        """Run a command again and again until it ends with exit status 0.

        Returns:
            Its standard output, the last time.

        Raises:
            WaitTimeout: it never did; the message says what the last try printed.
        """
        deadline = self._deadline(timeout)
        last: list[CommandResult] = []

        def attempt() -> CommandResult | None:
            last[:] = [self._run(command, max(1.0, deadline.remaining))]
            return last[0] if last[0].ok else None

        if succeeded := until(attempt, deadline, every=0.2):
            return succeeded.stdout
        raise WaitTimeout(f"within {deadline.seconds:g} s: {_told(self.name, last[0], '0')}")

    def wait_for_unit(self, unit: str, *, timeout: float = _WAIT_SECONDS) -> None:
        """Wait until a systemd unit is active.

        Raises:
            WaitTimeout: it is not; at once if it failed. The message ends with the unit's last log lines.
        """
        deadline, quoted = self._deadline(timeout), shlex.quote(unit)
        question = f"systemctl show --property=ActiveState --value -- {quoted}"

        def attempt() -> str | None:
            state = self._run(question, max(1.0, deadline.remaining)).stdout.strip()
            return state if state in ("active", "failed") else None

        if (state := until(attempt, deadline, every=0.2)) != "active":
            log = self._run(
                f"journalctl --no-pager -n {_TAIL_LINES} -u {quoted} 2>&1",
                _ATTEMPT_SECONDS * self.timeout_scale,
            )
            raise WaitTimeout(
                f"unit {unit} of {self.name} is {state or 'not active'} after {deadline.elapsed:.1f} s\n{log.stdout}"
            )

    def wait_for_port(self, port: int, *, timeout: float = _WAIT_SECONDS) -> None:
        """Wait until something in the guest listens on a TCP port.

        A guest with a shell is asked for its listening sockets (proc(5), /proc/net/tcp). Of another, a port
        counts as open if a connection to it is not closed at once: user-mode networking itself always accepts.

        Raises:
            WaitTimeout: nobody does; the message lists the ports that are listened on.
        """
        deadline = self._deadline(timeout)
        seen: list[set[int]] = []

        def attempt() -> bool | None:
            seen[:] = [self._listening(port, deadline)]
            return True if port in seen[0] else None

        if not until(attempt, deadline, every=0.1):
            found = ", ".join(map(str, sorted(seen[0]))) or "none"
            raise WaitTimeout(
                f"nothing listens on port {port} of {self.name} after {deadline.elapsed:.1f} s; open ports: {found}"
            )

    def _listening(self, port: int, deadline: Deadline) -> set[int]:
        if self.spec.login.channel == "none":
            return {port} if self.machine.answers(port, min(_ATTEMPT_SECONDS, deadline.remaining)) else set()
        table = self._run("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null", max(1.0, deadline.remaining)).stdout
        return listening_ports(table)

    def wait_for_file(self, path: str, *, timeout: float = _WAIT_SECONDS) -> None:
        """Wait until a file or folder exists in the guest.

        Raises:
            WaitTimeout: it does not; the message lists its folder.
        """
        deadline, quoted = self._deadline(timeout), shlex.quote(path)

        def attempt() -> bool | None:
            return True if self._run(f"test -e {quoted}", max(1.0, deadline.remaining)).ok else None

        if not until(attempt, deadline, every=0.1):
            folder = self._run(
                f"ls -la -- $(dirname -- {quoted}) 2>&1", _ATTEMPT_SECONDS * self.timeout_scale
            ).stdout
            raise WaitTimeout(
                f"there is no {path} on {self.name} after {deadline.elapsed:.1f} s; its folder:\n{folder}"
            )

    def wait_for_console(self, pattern: str, *, timeout: float = _WAIT_SECONDS) -> None:
        """Wait until the serial console has shown a match of a regular expression since power-on.

        Raises:
            WaitTimeout: it has not; the message ends with what it did show.
            GuestError: the guest panicked or switched itself off meanwhile.
        """
        self._await_console(pattern, self._deadline(timeout), phase="boot")

    def _await_console(self, pattern: str, deadline: Deadline, *, phase: str) -> None:
        wanted = re.compile(pattern, re.MULTILINE)

        def attempt() -> bool | None:
            if self.machine.console.wait_for(wanted, Deadline(min(_CHECK_SECONDS, deadline.remaining))):
                return True
            self.machine.check(phase)
            return None

        if not until(attempt, deadline, every=0):
            tail = "\n".join(self.machine.console.tail(_TAIL_LINES)) or "(nothing)"
            raise WaitTimeout(
                f"the console of {self.name} showed no {pattern!r} within {deadline.seconds:g} s; its last lines:\n{tail}"
            )

    # Network

    def connect(self, port: int, *, timeout: float = _COMMAND_SECONDS) -> socket.socket:
        """Open a TCP connection to a port of the guest.

        Returns:
            A connected socket, without a timeout; the caller closes it.

        Raises:
            OSError: nobody accepts in time.
        """
        return self.machine.dial(port, timeout * self.timeout_scale)

    def url(self, port: int, path: str = "/") -> str:
        """An HTTP address under which this machine reaches a port of the guest, as long as the guest lives.

        Args:
            port: the TCP port in the guest.
            path: what follows in the address.
        """
        if port not in self._relays:
            self._relays[port] = Relay(lambda: self.connect(port))
        return f"http://127.0.0.1:{self._relays[port].port}/{path.removeprefix('/')}"

    # Power

    def start(self, *, timeout: float = _POWER_SECONDS) -> None:
        """Switch the guest on again after `shutdown` or `crash`, with the disk as they left it; wait until it is ready."""
        self.machine.power_on()
        self._prove_ready(self, self._deadline(timeout))

    def reboot(self, *, timeout: float = _POWER_SECONDS) -> None:
        """Let the guest reboot, and wait until it is ready; a new boot id (random(4)) proves that it did.

        Raises:
            WaitTimeout: it did not start over, or did not come up again.
        """
        deadline = self._deadline(timeout)
        before = self._boot_id(deadline)
        with self.machine.journal.phase(self.name, "reboot"):
            self._leave("reboot", deadline)
            if not until(lambda: True if self._rebooted(before) else None, deadline, every=0.2):
                raise WaitTimeout(
                    f"{self.name} did not reboot within {deadline.seconds:g} s: boot id still {before}"
                )
            self._prove_ready(self, deadline)

    def shutdown(self, *, timeout: float = _POWER_SECONDS) -> None:
        """Ask the guest to switch itself off, and wait until it has.

        Over its channel where it has one, else by the ACPI power button.

        Raises:
            WaitTimeout: it is still on.
        """
        deadline = self._deadline(timeout)
        with self.machine.journal.phase(self.name, "shutdown"):
            if self.spec.login.channel == "none":
                self.machine.domain.press_power_button()
            else:
                self._leave("poweroff", deadline)
            if not until(lambda: True if self.machine.domain.state() == "off" else None, deadline):
                raise WaitTimeout(f"{self.name} did not switch itself off within {deadline.seconds:g} s")
        self._forget_connections()
        self.machine.power_off()

    def crash(self) -> None:
        """Cut the power, as a power failure would. `start` switches the guest on again."""
        self._forget_connections()
        self.machine.power_off()

    def reset(self, *, timeout: float = _POWER_SECONDS) -> None:
        """Make the guest as it was before the test: a fresh disk, booted anew, ready."""
        self.crash()
        self.machine.fresh_disk()
        self.start(timeout=timeout)

    def snapshot(self, name: str) -> None:
        """Keep memory, devices and disks as they are now, inside the guest's own overlay.

        Args:
            name: letters, digits, `.`, `_`, `-`, beginning with a letter.

        Raises:
            GuestError: QEMU cannot (a raw disk or UEFI variables that it would have to write to).
        """
        self._monitor_snapshot("savevm", name)

    def revert(self, name: str) -> None:
        """Go back to a snapshot of this guest; open connections to it end.

        Raises:
            GuestError: there is no such snapshot.
        """
        self._monitor_snapshot("loadvm", name)
        self._forget_connections()
        self.serial.forget()

    def _monitor_snapshot(self, verb: str, name: str) -> None:
        if not _SNAPSHOT_NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot name a snapshot", "use letters, digits, '.', '_' and '-'")
        with self.machine.journal.phase(self.name, verb):
            if refusal := self.machine.domain.monitor(f"{verb} {name}").strip():
                raise GuestError(f"{verb} {name} of {self.name}: {refusal}", phase="create")

    def _leave(self, program: str, deadline: Deadline) -> None:
        """Start a program that ends this boot, without waiting for its end, which would be the channel's too."""
        self._run(f"(sleep 0.3; {program}) >/dev/null 2>&1 &", max(1.0, deadline.remaining))
        self._forget_connections()

    def _boot_id(self, deadline: Deadline) -> str:
        result = self._run("cat /proc/sys/kernel/random/boot_id", max(1.0, deadline.remaining))
        if not result.ok:
            raise CommandFailed(_told(self.name, result, "0"))
        return result.stdout.strip()

    def _rebooted(self, before: str) -> bool:
        self.machine.check("boot")
        try:
            return self._boot_id(Deadline(_ATTEMPT_SECONDS)) != before
        except (GuestError, WaitTimeout, CommandFailed):
            self._forget_connections()
            return False

    def _forget_connections(self) -> None:
        self._ssh.close()

    # Screen and keyboard

    def screenshot(self, path: str | Path) -> Path:
        """Write a picture of the guest's screen.

        Args:
            path: a file to write; PNG with QEMU 7.1 and newer, else PPM.

        Returns:
            The path.

        Raises:
            HostError: the guest has no screen.
        """
        picture = Path(path)
        self.machine.domain.screenshot(picture)
        return picture

    def send_keys(self, *combinations: str, hold: float = 0.05) -> None:
        """Press keys on the guest's keyboard, one combination after the other.

        Args:
            combinations: names joined by `-`: `ctrl-alt-delete`, `shift-a`, `f2`, `enter`.
            hold: seconds that each is held down.

        Raises:
            ConfigError: no key has such a name.
        """
        for codes in [key_codes(combination) for combination in combinations]:
            self.machine.domain.send_keys(codes, hold=hold)

    def timings(self) -> dict[str, float]:
        """How long each phase of this guest took, in seconds; of a phase that came twice, the last time."""
        return {event.name: event.seconds for event in self.machine.journal.of(self.name, "phase")}

    def let_go(self) -> None:
        """Close every connection to the guest, and leave it running."""
        for relay in self._relays.values():
            relay.close()
        self._relays.clear()
        self._forget_connections()
        self.machine.let_go()

    def close(self) -> None:
        """End the guest and every connection to it.

        Raises:
            HostError: libvirt cannot end it.
        """
        self.let_go()
        self.machine.power_off()

    def _deadline(self, timeout: float) -> Deadline:
        return Deadline(timeout * self.timeout_scale)


Prover = Callable[[Guest, Deadline], None]


def listening_ports(table: str) -> set[int]:
    """The TCP ports that are listened on (state 0A), of the content of /proc/net/tcp and /proc/net/tcp6."""
    rows = (line.split() for line in table.splitlines())
    return {int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == "0A"}


def _told(name: str, result: CommandResult, wanted: str) -> str:
    """A command that ended otherwise than it should have, for a person."""
    output = "\n".join(part for part in (result.stdout, result.stderr) if part)[-_TAIL_CHARACTERS:]
    return (
        f"{name}: {result.command!r} ended with exit status {result.exit_status} after {result.duration:.2f} s, "
        f"wanted {wanted}\n{output.rstrip() or '(no output)'}"
    )
