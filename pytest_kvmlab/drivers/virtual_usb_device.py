"""USB devices written in Python: a guest cannot tell them from devices of plastic."""

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from pytest_kvmlab.drivers.usb_descriptors import Description, Speed, UsbInterface
from pytest_kvmlab.drivers.usb_outbox import MOST_BYTES, Outbox
from pytest_kvmlab.drivers.usb_plug import Plug
from pytest_kvmlab.drivers.usb_requests import ControlRequest, UsbStall
from pytest_kvmlab.drivers.usbredir import IN
from pytest_kvmlab.errors import UsbError, WaitTimeout

_MOST_ERRORS = 20
_Result = TypeVar("_Result")


class VirtualUsbDevice:
    """A USB device that a test programs: a subclass says what it is and what it answers.

    Three methods are there to be overridden: `control_in` and `control_out` for requests of a class or
    vendor, `received` for what comes on its endpoints. They are called on the device's own thread, one at a
    time; each may raise `UsbStall`, as it does by default. All else may be called from any thread.

    Args:
        identity: `vendor:product`, four hexadecimal digits each.
        serial: its serial number.

    Attributes:
        manufacturer: what a person reads.
        product: what a person reads.
        version: of the device, such as `1.00`.
        speed: `low`, `full` or `high`.
        device_class: class, subclass and protocol; three zeros leave that to the interfaces.
        interfaces: its functions; by default one of the vendor's own class without endpoints.

    Raises:
        ConfigError: no such device can be.
    """

    manufacturer: str = ""
    product: str = ""
    version: str = "1.00"
    speed: Speed = "full"
    device_class: tuple[int, int, int] = (0, 0, 0)
    interfaces: Sequence[UsbInterface] = (UsbInterface(),)

    def __init__(self, identity: str, *, serial: str = "") -> None:
        description = Description(
            identity=identity.lower(),
            serial=serial,
            manufacturer=self.manufacturer,
            product=self.product,
            version=self.version,
            speed=self.speed,
            device_class=self.device_class,
            interfaces=tuple(self.interfaces),
        )
        self._firmware = _Firmware(self, description)
        self._port: Path | None = None
        self._plug: Plug | None = None
        self._lock = threading.Lock()

    @property
    def identity(self) -> str:
        """`vendor:product`, in lower case."""
        return self._firmware.description.identity

    @property
    def serial(self) -> str:
        """Its serial number."""
        return self._firmware.description.serial

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.identity} {self.serial}>".replace(" >", ">")

    def control_in(self, request: ControlRequest) -> bytes:  # noqa: ARG002 -- for those who override it
        """Answer a request that asks for data.

        Args:
            request: of a class or vendor, or a standard one that is not answered for every device alike.

        Returns:
            The data; what is longer than `request.length` is cut off.

        Raises:
            UsbStall: there is no such request.
        """
        raise UsbStall

    def control_out(self, request: ControlRequest, data: bytes) -> None:  # noqa: ARG002 -- for those who override it
        """Carry out a request that brings data, or none.

        Args:
            request: as above.
            data: `request.length` bytes.

        Raises:
            UsbStall: there is no such request.
        """
        raise UsbStall

    def received(self, endpoint: int, data: bytes) -> None:  # noqa: ARG002 -- for those who override it
        """Take what the guest has sent.

        Args:
            endpoint: its address, 0x01 to 0x0f.
            data: one transfer.

        Raises:
            UsbStall: it is not taken; the guest gets STALL until it clears the endpoint's halt.
        """
        raise UsbStall

    def send(self, endpoint: int, data: bytes) -> None:
        """Give the guest data, which wait until it asks for them, or until the device is pulled out.

        Args:
            endpoint: an address of this device's, 0x81 to 0x8f.
            data: one transfer; on an interrupt endpoint, what is longer than a packet becomes several. QEMU
                keeps about 2000 such packets for a guest that does not fetch them, and drops what is more.

        Raises:
            UsbError: there is no such endpoint, or 4 MiB wait there already.
        """
        known = {pipe.address for _, pipe in self._firmware.description.endpoints()}
        if endpoint not in known or not endpoint & IN:
            raise UsbError(f"{self!r} has no endpoint {endpoint:#04x} to the guest")
        if not self._firmware.outbox.put(endpoint, bytes(data)):
            raise UsbError(f"{self!r}: {MOST_BYTES >> 20} MiB wait on endpoint {endpoint:#04x} already")
        if plug := self._plug:
            plug.wake()

    def plug(self) -> None:
        """Plug it into the port that it is served to; does nothing if it is plugged.

        When this returns, the guest's controller has it, unless the guest is paused.

        Raises:
            UsbError: it is served to none, or nobody listens there: the guest is off.
        """
        self._connected().settle()

    def _connected(self) -> Plug:
        with self._lock:
            if self._port is None:
                raise UsbError(f"{self!r} belongs to no guest", "attach it to one: guest.usb.attach(device)")
            if self._plug is None or not self._plug.alive:
                self._plug = Plug(self._port, self._firmware)
            return self._plug

    def unplug(self) -> None:
        """Pull it out, in the middle of whatever it does; does nothing if it is out. Never hangs.

        When this returns, the guest's controller knows, unless the guest is paused. What waited to be sent
        is lost.
        """
        with self._lock:
            plug, self._plug = self._plug, None
        if plug is not None:
            plug.pull()
            self._firmware.outbox.clear()

    @contextmanager
    def serve(self, port: Path, *, plugged: bool = True) -> Iterator[Self]:
        """Be the device of one port of a guest.

        Args:
            port: the Unix socket at which QEMU listens: the chardev of a `usb-redir` device.
            plugged: whether it is plugged in at once.

        Returns:
            A context manager that gives the device, and pulls it out at the end.

        Raises:
            UsbError: it is served already, or nobody listens there.
        """
        with self._lock:
            if self._port is not None:
                raise UsbError(f"{self!r} is in a guest already", "detach it there, or make another one")
            self._port = port
        try:
            if plugged:
                self._connected()  # the guest may not run yet
            yield self
        finally:
            with self._lock:
                self._port = None
            self.unplug()

    @property
    def is_plugged(self) -> bool:
        """Whether QEMU has it in a port, which it does not before the guest runs."""
        plug = self._plug
        return plug is not None and plug.taken

    @property
    def is_configured(self) -> bool:
        """Whether the guest has enumerated it and chosen its configuration: then it can be used."""
        plug = self._plug
        return plug is not None and plug.configured

    def wait_until_configured(self, *, timeout: float = 60) -> None:
        """Wait until the guest can use it.

        Args:
            timeout: seconds.

        Raises:
            UsbError: it is not plugged in, or is pulled out meanwhile.
            WaitTimeout: the guest did not choose its configuration in time.
        """
        plug = self._plug
        if plug is not None:
            plug.wait(timeout)
        if plug is None or not plug.alive:
            raise UsbError(f"{self!r} is not plugged in", looked_at=self.errors)
        if not plug.configured:
            raise WaitTimeout(f"the guest did not configure {self!r} within {timeout:g} s")

    @property
    def errors(self) -> tuple[Exception, ...]:
        """What its methods raised, and what its guests did against the protocol, newest last."""
        return tuple(self._firmware.errors)


class _Firmware:
    """What a plug needs of a device: the methods of its model, none of which can end the plug's thread."""

    def __init__(self, device: VirtualUsbDevice, description: Description) -> None:
        self.description = description
        self.outbox = Outbox()
        self.errors: deque[Exception] = deque(maxlen=_MOST_ERRORS)
        self.take = self.outbox.take
        self.record = self.errors.append
        self._device = device

    def answer(self, request: ControlRequest, data: bytes) -> bytes:
        """Answer a request; one that brings data answers with what it took."""
        if request.request_type & IN:
            return self._recorded(lambda: bytes(self._device.control_in(request)))
        self._recorded(lambda: self._device.control_out(request, data))
        return data

    def received(self, endpoint: int, data: bytes) -> None:
        """Take what the guest has sent."""
        self._recorded(lambda: self._device.received(endpoint, data))

    def _recorded(self, call: Callable[[], _Result]) -> _Result:
        try:
            return call()
        except UsbStall:
            raise
        except Exception as error:  # a test's own code
            # Where it happened is worth keeping; what the guest had sent, which may be long, is not.
            within = error.__traceback__.tb_next if error.__traceback__ else None
            traceback.clear_frames(within)
            self.record(error.with_traceback(within))
            raise UsbStall from error
