"""From a connected socket to an authenticated connection, the host key verified on the way."""

import logging
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import paramiko
from paramiko.auth_strategy import AuthResult, AuthSource, AuthStrategy, InMemoryPrivateKey, Password

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.ssh_connection import SshConnection
from pytest_kvmlab.drivers.ssh_keys import HostKey, load_private_key
from pytest_kvmlab.errors import GuestError, KvmlabError

_LOG = "pytest_kvmlab.ssh"
_END_SECONDS = 2.0

# paramiko logs every failed attempt with a traceback. What went wrong is in our errors; a boot
# that takes ten attempts shall not fill the log of the test. Lower the level to see paramiko at work.
logging.getLogger(_LOG).setLevel(logging.CRITICAL)


class SshNotReady(GuestError):
    """The guest does not take SSH connections yet; a later attempt may succeed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "see the guest's console log: did its SSH server start?", phase="ssh")


@dataclass(frozen=True)
class Login:
    """Who logs in, and how: by the key, then by the password, and by nothing else.

    Attributes:
        user: the account in the guest.
        private_key: a private key as text, or None.
        password: a password, or None.
    """

    user: str
    private_key: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


class Handshake:
    """What it takes to log in to one guest.

    Args:
        name: the guest, for messages.
        login: who logs in.
        expected: the only host key to accept; None accepts any.

    Attributes:
        seen: the host key that the server proved to have, once it did.
    """

    def __init__(self, name: str, login: Login, expected: HostKey | None) -> None:
        self.name = name
        self.seen: HostKey | None = None
        self._login = login
        self._expected = expected
        self._authentication = _Authentication(login)

    def perform(self, sock: socket.socket, deadline: Deadline) -> SshConnection:
        """Exchange keys, verify the host key, and authenticate.

        Args:
            sock: a connected socket whose server has begun to speak; closed on failure.
            deadline: when to give up.

        Raises:
            SshNotReady: the server hung up, or was too slow.
            GuestError: another host key, a refused login, or no common algorithm.
        """
        client = paramiko.SSHClient()
        try:
            self._connect(client, sock, deadline)
            return SshConnection(client, self.name)
        except BaseException:
            _abandon(client)
            sock.close()
            raise

    def _connect(self, client: paramiko.SSHClient, sock: socket.socket, deadline: Deadline) -> None:
        def transport(sock: Any, /, **options: Any) -> paramiko.Transport:
            return _frugal_transport(sock, self._expected, deadline, **options)

        client.set_log_channel(_LOG)
        client.set_missing_host_key_policy(_Verify(self))
        try:
            client.connect(
                self.name,
                sock=sock,
                transport_factory=transport,
                auth_strategy=self._authentication,
                timeout=deadline.remaining,
                banner_timeout=deadline.remaining,
                auth_timeout=deadline.remaining,
            )
        except KvmlabError:
            raise
        except Exception as error:  # paramiko passes on whatever its reader thread died of
            raise self._explain(error, client.get_transport(), deadline) from error

    def verify(self, proved: HostKey) -> None:
        """Remember the key that the server proved to have.

        Raises:
            GuestError: it is not the one expected.
        """
        self.seen = proved
        if self._expected is None or proved == self._expected:
            return
        raise GuestError(
            f"{self.name} proved another host key than the one expected",
            'another machine answered, or the guest made itself new keys: pin the new one, or say "learn"',
            phase="ssh",
            looked_at=[
                f"expected: {self._expected.algorithm} {self._expected.fingerprint}",
                f"proved: {proved.algorithm} {proved.fingerprint}",
            ],
        )

    def _explain(
        self, error: Exception, transport: paramiko.Transport | None, deadline: Deadline
    ) -> GuestError:
        told = str(error) or type(error).__name__
        if deadline.passed:
            return SshNotReady(f"{self.name} did not finish the SSH handshake in {deadline.seconds:g} s")
        refused = isinstance(error, paramiko.AuthenticationException)
        if refused and transport is not None and transport.is_active():
            return self._refusal(told, transport)
        # paramiko has no type of its own for a server that hung up before the end of its first line.
        hung_up = any(isinstance(each, (EOFError, OSError)) for each in (error, error.__context__))
        if refused or hung_up:
            return SshNotReady(f"{self.name} hung up during the SSH handshake: {told}")
        return GuestError(f"the SSH handshake with {self.name} failed: {told}", phase="ssh")

    def _refusal(self, told: str, transport: paramiko.Transport) -> GuestError:
        user = self._login.user
        return GuestError(
            f"{self.name} does not let {user!r} log in: {told}",
            "check the guest's login; its image must know this key or password",
            phase="ssh",
            looked_at=[f"ways to log in that the server offers: {_offered(transport, user)}"],
        )


class _Verify(paramiko.MissingHostKeyPolicy):
    """Hands every host key to the handshake: no key is ever known to paramiko itself."""

    def __init__(self, handshake: Handshake) -> None:
        self._handshake = handshake

    def missing_host_key(self, _client: object, _hostname: str, key: paramiko.PKey) -> None:
        self._handshake.verify(HostKey(key.get_name(), key.asbytes()))


class _Authentication(AuthStrategy):
    """What the login holds, in order: no agent, no files of the user's, no prompt on the terminal."""

    def __init__(self, login: Login) -> None:
        super().__init__(paramiko.SSHConfig())
        self._login = login
        self._key = None if login.private_key is None else load_private_key(login.private_key)

    def get_sources(self) -> Iterator[AuthSource]:
        password = self._login.password
        if self._key is not None:
            yield InMemoryPrivateKey(self._login.user, self._key)
        if password is not None:
            yield Password(self._login.user, lambda: password)

    def authenticate(self, transport: paramiko.Transport) -> AuthResult:
        # paramiko's own takes a server's "and now the password, too" for success.
        refused = paramiko.AuthenticationException("the server asks for more than the login holds")
        for source in self.get_sources():
            try:
                if not source.authenticate(transport):
                    return AuthResult(self)
            except paramiko.AuthenticationException as error:
                refused = error
        raise refused


def _abandon(client: paramiko.SSHClient) -> None:
    """Close a client that did not get through, without the threads that paramiko would leave behind."""
    transport = client.get_transport()
    client.close()
    if transport is not None and transport.ident is not None:
        transport.packetizer.complete_handshake()  # stops the timer of the handshake
        transport.join(_END_SECONDS)


def _frugal_transport(
    sock: socket.socket, expected: HostKey | None, deadline: Deadline, **options: Any
) -> paramiko.Transport:
    """A transport that tries those algorithms first that cost an emulated guest least."""
    transport = paramiko.Transport(sock, **options)
    transport.handshake_timeout = deadline.remaining
    offer = transport.get_security_options()
    # The post-quantum exchange would come first; on a line that never leaves this machine it is only slower.
    offer.kex = _preferring("curve25519", offer.kex)
    if expected is not None:
        # Else a server with several keys proves another one than the one expected.
        family = "rsa-sha2" if expected.algorithm == "ssh-rsa" else expected.algorithm
        offer.key_types = _preferring(family, offer.key_types)
    return transport


def _preferring(prefix: str, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: not name.startswith(prefix)))


def _offered(transport: paramiko.Transport, user: str) -> str:
    """What the server answers to the question that RFC 4252, section 5.2 has for this."""
    try:
        transport.auth_none(user)
    except paramiko.BadAuthenticationType as answer:
        return ", ".join(answer.allowed_types)
    except (paramiko.SSHException, EOFError, OSError) as error:
        return f"unknown ({error})"
    return "none needed"
