"""A port of the guest's own loopback, reached through its SSH connection."""

import socket
from functools import partial

import paramiko

from pytest_kvmlab.drivers.relay import Relay
from pytest_kvmlab.drivers.ssh_connection import SshConnection, discard

_OPEN_SECONDS = 30.0


class ForwardedPort(Relay):
    """Relays connections to a loopback port of this machine to `127.0.0.1:port` in the guest.

    A connection that the guest refuses is closed at once. Usable as a context manager.

    Args:
        connection: carries the relayed bytes.
        guest_port: the TCP port in the guest.
    """

    def __init__(self, connection: SshConnection, guest_port: int) -> None:
        super().__init__(partial(_open, connection.transport, guest_port))


class _ChannelStream:
    """A channel that ends as a socket does."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self.recv = channel.recv
        self.sendall = channel.sendall
        self.close = channel.close
        self._channel = channel

    def shutdown(self, how: int) -> None:
        if how == socket.SHUT_WR:
            self._channel.shutdown_write()
        else:
            discard(self._channel)


def _open(transport: paramiko.Transport, guest_port: int) -> _ChannelStream:
    # By address: an image as small as a few megabytes has no /etc/hosts to find `localhost` in.
    there, here = ("127.0.0.1", guest_port), ("127.0.0.1", 0)
    try:
        return _ChannelStream(transport.open_channel("direct-tcpip", there, here, timeout=_OPEN_SECONDS))
    except (paramiko.SSHException, EOFError) as error:
        raise ConnectionError(f"the guest refused a connection to port {guest_port}: {error}") from error
