"""The SSH channel of a guest."""

import socket
from collections.abc import Callable
from pathlib import Path

import paramiko

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.command import CommandResult
from pytest_kvmlab.drivers.ssh_command import run_command
from pytest_kvmlab.drivers.ssh_connection import SshConnection, SshLost
from pytest_kvmlab.drivers.ssh_files import transferring
from pytest_kvmlab.drivers.ssh_forward import ForwardedPort
from pytest_kvmlab.drivers.ssh_keys import HostKey
from pytest_kvmlab.drivers.ssh_login import Handshake, Login, SshNotReady
from pytest_kvmlab.drivers.ssh_shell import interact

__all__ = ["LEARN", "Connect", "ForwardedPort", "Login", "SshChannel", "SshLost", "SshNotReady"]

LEARN = "learn"

Connect = Callable[[float], socket.socket]


class SshChannel:
    """Commands, files and ports of one guest over one SSH connection, each with a deadline.

    Safe to use from several threads at once, except `open` and `close`.

    Args:
        name: the guest, for messages.
        connect: gives a TCP socket connected to the guest's SSH server within so many seconds,
            or raises OSError; the socket may come out of another network namespace.
        login: who logs in.
        host_key: the only host key to accept, `ssh-ed25519 AAAA…`; or `"learn"`: accept the first
            one that is seen, and from then on only that one.

    Raises:
        ConfigError: the host key or the private key cannot be read.
    """

    def __init__(self, name: str, connect: Connect, login: Login, *, host_key: str) -> None:
        self.name = name
        self._connect = connect
        self._login = login
        self._expected = None if host_key == LEARN else HostKey.parse(host_key)
        self._connection: SshConnection | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection that can carry a command."""
        return self._connection is not None and self._connection.alive

    @property
    def host_key(self) -> str:
        """The host key that is accepted, as in a `.pub` file; empty while there is none to be learnt yet."""
        return "" if self._expected is None else self._expected.line

    def open(self, timeout: float, *, patience: float = 3.0) -> None:
        """Make one attempt to connect and log in; whoever waits for a boot calls this again and again.

        Args:
            timeout: seconds for the whole attempt.
            patience: seconds in which the server must begin to speak. User-mode networking accepts a
                connection before anybody listens in the guest, and may keep it silent long after
                somebody does: a new connection is faster than waiting for that one.

        Raises:
            SshNotReady: nobody listens, speaks, or finishes the handshake yet: a later attempt may succeed.
            GuestError: no later attempt will: another host key, a refused login, no common algorithm.
        """
        deadline = Deadline(timeout)
        self.close()
        handshake = Handshake(self.name, self._login, self._expected)
        self._connection = handshake.perform(self._dial(deadline, patience), deadline)
        self._expected = handshake.seen

    def _dial(self, deadline: Deadline, patience: float) -> socket.socket:
        """A socket on which the server has begun to speak: paramiko alone would wait, and log tracebacks."""
        try:
            sock = self._connect(deadline.remaining)
        except OSError as error:
            raise SshNotReady(f"{self.name} takes no SSH connection: {error}") from error
        try:
            # Small messages go both ways at once: without this each command waits 40 ms for a delayed ACK.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            _await_first_byte(sock, min(patience, deadline.remaining))
        except OSError as error:
            sock.close()
            raise SshNotReady(f"{self.name} accepted an SSH connection, but {error}") from error
        return sock

    def run(self, command: str, *, timeout: float = 60.0, stdin: str | bytes = b"") -> CommandResult:
        """Run a command by the login shell of the guest's user, whatever its exit status.

        A process that the command leaves in the background does not keep it from ending. A command
        that is cut off loses its streams, but the SSH protocol has no sure way to end it.

        Args:
            command: text for the shell.
            timeout: seconds until it must have ended.
            stdin: what the command can read; text is sent as UTF-8.

        Raises:
            WaitTimeout: it had not ended by then; with its output so far. The connection stays usable.
            CommandFailed: it printed more than 64 MiB.
            SshLost: the connection broke meanwhile, or there was none.
            GuestError: the guest refused to run a command.
        """
        sent = stdin.encode() if isinstance(stdin, str) else stdin
        return run_command(self._open_connection(), command, Deadline(timeout), sent)

    def put(self, local: str | Path, remote: str, *, timeout: float = 300.0) -> None:
        """Copy one file into the guest, with its permission bits.

        Args:
            local: the file; not a folder.
            remote: the path in the guest, not a folder; relative to the user's home.
            timeout: seconds for the whole copy. Some seconds without an answer end it sooner.

        Raises:
            FileNotFoundError, PermissionError: on either side; `web:/path` is one of the guest's.
            OSError: the guest could not write, because its disk is full for example.
            WaitTimeout: it took too long.
            SshLost: the connection broke meanwhile, or there was none.
            GuestError: the guest has no SFTP server.
        """
        with transferring(self._open_connection(), Deadline(timeout)) as transfer:
            transfer.put(Path(local), remote)

    def get(self, remote: str, local: str | Path, *, timeout: float = 300.0) -> None:
        """Copy one file out of the guest; the local file appears complete or not at all.

        Args:
            remote: the path in the guest, not a folder; relative to the user's home.
            local: the file to write or to replace.
            timeout: seconds for the whole copy. Some seconds without an answer end it sooner.

        Raises:
            FileNotFoundError, PermissionError: on either side; `web:/path` is one of the guest's.
            OSError: the guest could not read, because it is a folder for example.
            WaitTimeout: it took too long.
            SshLost: the connection broke meanwhile, or there was none.
            GuestError: the guest has no SFTP server.
        """
        with transferring(self._open_connection(), Deadline(timeout)) as transfer:
            transfer.get(remote, Path(local))

    def forward(self, port: int) -> ForwardedPort:
        """Relay a loopback port of this machine to a port on the guest's own loopback.

        Args:
            port: the TCP port in the guest; whether somebody listens is seen at the first connection.

        Returns:
            An object with `.port` and `.close()`, usable as a context manager.

        Raises:
            SshLost: there is no connection.
        """
        return ForwardedPort(self._open_connection(), port)

    @property
    def client(self) -> paramiko.SSHClient:
        """The paramiko client of this connection, for what the verbs do not cover.

        Raises:
            SshLost: there is no connection.
        """
        return self._open_connection().client

    def interact(self) -> int:
        """Connect this process's terminal to a shell in the guest; its exit status is returned.

        Raises:
            SshLost: the connection broke, or there was none.
            GuestError: the guest refused to start a shell.
        """
        return interact(self._open_connection())

    def close(self) -> None:
        """Close the connection and all that runs over it. Never hangs, never raises."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open_connection(self) -> SshConnection:
        if self._connection is None:
            raise SshLost(f"there is no SSH connection to {self.name}")
        if not self._connection.alive:
            raise SshLost(f"the SSH connection to {self.name} was lost")
        return self._connection


def _await_first_byte(sock: socket.socket, seconds: float) -> None:
    """Wait until the server speaks, and leave what it says to be read.

    Raises:
        OSError: it said nothing in time, or hung up.
    """
    sock.settimeout(seconds)
    try:
        spoken = sock.recv(1, socket.MSG_PEEK)
    except TimeoutError as error:
        raise TimeoutError(f"said nothing for {seconds:g} s") from error
    if not spoken:
        raise ConnectionAbortedError("hung up at once")
