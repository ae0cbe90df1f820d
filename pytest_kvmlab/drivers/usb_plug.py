"""A USB device's plug: the connection to a port that QEMU emulates, and the thread that speaks on it."""

import selectors
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pytest_kvmlab.drivers.usbredir_session import Device, Session
from pytest_kvmlab.errors import UsbError

_CONNECT_SECONDS = 5
# A port greets and acknowledges within milliseconds; that of a guest that is paused does neither.
_TAKE_SECONDS = _PULL_SECONDS = 2.0
_CHUNK = 1 << 16


class Recorder(Device, Protocol):
    """A device that remembers what its guest did wrong."""

    record: Callable[[Exception], None]


class Plug:
    """A device in a port, from connecting until either side ends it.

    Args:
        port: the Unix socket at which QEMU listens: the chardev of a `usb-redir` device.
        device: what is plugged in.

    Attributes:
        alive: whether neither side has ended it.

    Raises:
        UsbError: nobody listens there.
    """

    def __init__(self, port: Path, device: Recorder) -> None:
        self._line = _connected(port)
        self._record = device.record
        self._session = Session(device)
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._pulled = False
        self.alive = True
        self._thread = threading.Thread(target=self._run, name=f"usb-{port.name}", daemon=True)
        self._thread.start()

    @property
    def taken(self) -> bool:
        """Whether the port has the device; one whose guest does not run does not take it yet."""
        return self.alive and self._session.taken.is_set()

    @property
    def configured(self) -> bool:
        """Whether the guest has chosen the device's configuration."""
        return self.alive and self._session.configured.is_set()

    def settle(self) -> None:
        """Wait until the port has the device, for as long as one takes whose guest runs."""
        self._session.taken.wait(_TAKE_SECONDS)

    def wait(self, seconds: float) -> None:
        """Wait until the guest has chosen, until the plug is out, or until the time is up."""
        self._session.configured.wait(seconds)

    def wake(self) -> None:
        """Let the thread look whether the device has something for the guest. Never blocks."""
        with suppress(OSError):  # full: it is awake; closed: it is over
            self._waker.send(b"\0")

    def pull(self) -> None:
        """End the connection; QEMU has seen it when this returns, unless it is paused. Never hangs."""
        self._pulled = True
        self.wake()
        if threading.current_thread() is self._thread:  # a device that pulls itself out while it answers
            return
        self._thread.join(_PULL_SECONDS)
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        self._thread.join(_PULL_SECONDS)

    def _run(self) -> None:
        try:
            self._converse()
        except UsbError as error:
            self._record(error.with_traceback(None))  # which would keep all that was received
        except OSError:  # QEMU has ended, or the plug was pulled out of a guest that stands still
            pass
        finally:
            self.alive = False
            self._session.taken.set()  # who waits for it waits in vain
            self._session.configured.set()
            for end in (self._line, self._waker, self._wakened):
                end.close()

    def _converse(self) -> None:
        self._line.sendall(self._session.greet())
        with selectors.DefaultSelector() as selector:
            selector.register(self._line, selectors.EVENT_READ)
            selector.register(self._wakened, selectors.EVENT_READ)
            while not self._session.ended:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._line in ready and not self._hear():
                    return
                if self._wakened in ready:
                    self._wakened.recv(_CHUNK)
                    if self._pulled:
                        self._line.sendall(self._session.part())
                for report in self._session.flush():
                    self._line.sendall(report)

    def _hear(self) -> bool:
        """Answer what has come; False at the end of the connection."""
        received = self._line.recv(_CHUNK)
        for answer in self._session.hear(received):
            self._line.sendall(answer)
        return bool(received)


def _connected(port: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    try:
        # QEMU lets few wait for the port, and a socket with Python's own timeout would not be one of them
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _CONNECT_SECONDS, 0))
        line.connect(str(port))
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 0))
    except OSError as error:
        line.close()
        raise UsbError(
            f"no guest has the USB port {port.name}: {error.strerror or error}",
            "the guest has to run, with a redirected device on this socket",
            looked_at=[port],
        ) from error
    return line
