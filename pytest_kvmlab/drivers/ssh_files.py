"""Files to and from a guest over SFTP."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import paramiko

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.ssh_connection import SshConnection, cut_off
from pytest_kvmlab.errors import WaitTimeout

_CHUNK = 32768
"""Bytes per request: what paramiko asks for at most, and what every server must grant."""
_END_SECONDS = 2.0
_STALL_SECONDS = 30.0
"""How long the guest may leave one request unanswered."""


class Transfer:
    """One SFTP session, and how its failures are told.

    Args:
        sftp: the session.
        connection: what carries it.
        deadline: when it is cut off.
    """

    def __init__(self, sftp: paramiko.SFTPClient, connection: SshConnection, deadline: Deadline) -> None:
        self._sftp = sftp
        self._connection = connection
        self._deadline = deadline

    def put(self, local: Path, remote: str) -> None:
        """Write a local file to a path in the guest, with the same permission bits."""
        with local.open("rb") as source:
            with self._about(remote):
                target = self._sftp.open(remote, "wb")
                target.chmod(os.fstat(source.fileno()).st_mode & 0o777)
            while chunk := source.read(_CHUNK):
                with self._about(remote):
                    target.write(chunk)
            with self._about(remote):
                target.close()

    def get(self, remote: str, local: Path) -> None:
        """Write a guest's file to a local path, which appears complete or not at all."""
        partial = local.with_name(f".{local.name}.{secrets.token_hex(4)}.partial")
        try:
            with partial.open("xb") as target:
                for chunk in self._read(remote):
                    target.write(chunk)
            partial.replace(local)
        finally:
            partial.unlink(missing_ok=True)

    def _read(self, remote: str) -> Iterator[bytes]:
        """The content, asked for piece by piece up to the end of the file.

        paramiko's prefetch would be faster, but believes the size, which is 0 below /proc and old news
        for a growing log; and where it fails, it leaves a thread behind.
        """
        with self._about(remote):
            source = self._sftp.open(remote, "rb")
        while chunk := self._next(source, remote):
            yield chunk

    def _next(self, source: paramiko.SFTPFile, remote: str) -> bytes:
        with self._about(remote):
            return source.read(_CHUNK)

    @contextmanager
    def _about(self, remote: str) -> Iterator[None]:
        """Say what failed with the guest's path, by the exceptions that `open` would raise."""
        try:
            yield
        except TimeoutError as error:
            raise WaitTimeout(
                f"{self._connection.name} left {remote!r} without an answer for {_STALL_SECONDS:g} s"
            ) from error
        except (OSError, EOFError, paramiko.SSHException, paramiko.SFTPError) as error:
            raise self._explain(error, remote) from error

    def _explain(self, error: Exception, remote: str) -> Exception:
        if self._deadline.passed or not self._connection.survives():
            return self._connection.explain(error, f"the transfer of {remote!r}", self._deadline)
        place = f"{self._connection.name}:{remote}"
        code = getattr(error, "errno", None)
        if code is not None:
            return OSError(code, os.strerror(code), place)
        return OSError(errno.EIO, f"the guest's SFTP server says {str(error) or 'nothing'!r}", place)


@contextmanager
def transferring(connection: SshConnection, deadline: Deadline) -> Iterator[Transfer]:
    """An SFTP session of its own, so that transfers in several threads do not wait for each other.

    Raises:
        SshLost: the connection broke.
        WaitTimeout: the guest did not answer in time.
        GuestError: the guest has no SFTP server.
    """
    with ExitStack() as stack:
        with connection.answering("starting the SFTP server", deadline):
            channel = stack.enter_context(connection.session(_start, deadline))
            stack.enter_context(cut_off(channel, deadline))
            channel.settimeout(_STALL_SECONDS)
            sftp = paramiko.SFTPClient(channel)
        stack.callback(_end, channel)
        yield Transfer(sftp, connection, deadline)


def _start(channel: paramiko.Channel) -> None:
    channel.invoke_subsystem("sftp")


def _end(channel: paramiko.Channel) -> None:
    """Let the SFTP server end by itself: its end would close another session in dropbear."""
    with suppress(EOFError, OSError):
        channel.shutdown_write()
        channel.status_event.wait(_END_SECONDS)
