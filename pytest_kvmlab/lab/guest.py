"""A guest and its verbs: commands, conditions and power come from the modules of these names."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from pytest_kvmlab.drivers.relay import Relay
from pytest_kvmlab.drivers.ssh import SshChannel
from pytest_kvmlab.drivers.testinfra import testinfra_host
from pytest_kvmlab.errors import ConfigError, HostError, TeardownError
from pytest_kvmlab.lab.commands import COMMAND_SECONDS
from pytest_kvmlab.lab.dongles import Supply
from pytest_kvmlab.lab.guest_usb import GuestUsb
from pytest_kvmlab.lab.kernel_upgrade import KernelUpgrades, Packages
from pytest_kvmlab.lab.machine import Machine
from pytest_kvmlab.lab.nic import Nic
from pytest_kvmlab.lab.store import Image
from pytest_kvmlab.plan.keyboard import key_codes
from pytest_kvmlab.spec.resolved import GuestSpec

if TYPE_CHECKING:
    from testinfra.host import Host as TestinfraHost  # type: ignore[import-untyped] # it carries no types


class Guest(KernelUpgrades):
    """A running virtual machine.

    Every `timeout` is in seconds, and is multiplied by the run's timeout scale.

    Attributes:
        spec: what was asked for, all defaults filled in.
        machine: the virtual machine below the verbs.
        image_identity: the SHA-256 of its image, or the path of the file that stands in for it.
        kernel: the version of the kernel that it booted last, or the path of its file.
        timeout_scale: what timeouts are multiplied by.
        nics: its network cards, in the order of the key `networks`.
        usb: its USB devices by name.
        kernel_watch: listens to what its kernel complains about.
    """

    def __init__(
        self,
        machine: Machine,
        spec: GuestSpec,
        ssh: SshChannel,
        *,
        image_identity: str,
        kernel: str,
        timeout_scale: float,
        save: Callable[..., Image] | None,
        dongles: Supply,
        kernels: Packages,
        nics: Sequence[Nic] = (),
    ) -> None:
        super().__init__(machine, spec, ssh, timeout_scale=timeout_scale, kernel=kernel, kernels=kernels)
        self.image_identity = image_identity
        self.nics = tuple(nics)
        self.usb = GuestUsb(self, dongles)
        self._save = save
        self._relays: dict[int, Relay] = {}

    def __repr__(self) -> str:
        return f"<guest {self.name!r}, image {self.spec.image!r}>"

    @property
    def domain(self) -> Any:
        """Libvirt's own `virDomain`, for what the verbs do not cover."""
        return self.machine.domain.raw

    @property
    def testinfra(self) -> "TestinfraHost":
        """A pytest-testinfra host whose commands go where `run` goes.

        Raises:
            ConfigError: pytest-testinfra is not installed.
        """
        return testinfra_host(self.run)

    def connect(self, port: int, *, timeout: float = COMMAND_SECONDS) -> socket.socket:
        """Open a TCP connection to a port of the guest.

        Returns:
            A connected socket, without a timeout; the caller closes it.

        Raises:
            OSError: nobody accepts in time.
            GuestError: the guest has no network card.
        """
        return self.machine.dial(port, self.deadline(timeout).seconds)

    def url(self, port: int, path: str = "/") -> str:
        """An HTTP address under which this machine reaches a port of the guest, as long as the guest lives.

        Args:
            port: the TCP port in the guest.
            path: what follows in the address.
        """
        if port not in self._relays:
            self._relays[port] = Relay(lambda: self.connect(port))
        return f"http://127.0.0.1:{self._relays[port].port}/{path.removeprefix('/')}"

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
            ConfigError: no key has such a name; none was pressed then.
        """
        for codes in [key_codes(combination) for combination in combinations]:
            self.machine.domain.send_keys(codes, hold=hold)

    def save_image(self, name: str, *, replace: bool = False) -> str:
        """Make an image of the first disk of a guest that is off, for other guests to start from.

        Args:
            name: what the new image is called.
            replace: also if another image has this name.

        Returns:
            The new image's SHA-256, which is the `image_identity` of its guests.

        Raises:
            ConfigError: the guest is on, or has no disk of an image.
            ImageError: the name is taken, the disk stands on a file that is no image of the store, or the
                store cannot be written to.
        """
        if self.machine.is_on:
            raise ConfigError(f"{self.name} is on, so its disk is in motion", "guest.shutdown() comes first")
        if self._save is None:
            raise ConfigError(f"{self.name} has no disk of an image")
        return self._save(name, replace=replace).sha256

    def timings(self) -> dict[str, float]:
        """How long each phase of this guest took, in seconds; of a phase that came twice, the last time."""
        return {event.name: event.seconds for event in self.machine.journal.of(self.name, "phase")}

    def raised(self, error: BaseException) -> bool:
        """Whether an error came out of a call to this guest or one of its channels, rather than another's.

        Names of guests do not tell: two that are up for one test may have the same.

        Args:
            error: what was raised, with its whole traceback.
        """
        parts = [self, self.machine, self._ssh, self.usb, *self.nics]
        if self.machine.was_on:
            parts.append(self.machine.serial)
        callees = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
        return any(callee is part for callee in callees for part in parts)

    def hang_up(self) -> None:
        """Close every connection to the guest over a network."""
        for relay in self._relays.values():
            relay.close()
        self._relays.clear()
        self._ssh.close()

    def let_go(self) -> None:
        """Close every connection to the guest, and leave it running."""
        self.hang_up()
        self.machine.let_go()

    def close(self) -> None:
        """End the guest and every connection to it.

        Raises:
            TeardownError: libvirt cannot end it.
        """
        self.let_go()
        try:
            self.machine.power_off()
        except HostError as error:
            raise TeardownError(f"{self.name} does not end: {error.message}", error.hint) from error
        self.usb.close()
