"""A network card of a running guest."""

from dataclasses import dataclass

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.keeper.faults import Impairment
from pytest_kvmlab.lab.machine import Machine
from pytest_kvmlab.lab.wiring import Line


@dataclass(frozen=True)
class Nic:
    """A network card.

    Attributes:
        mac: its MAC address.
    """

    mac: str
    _machine: Machine
    _line: Line | None

    @property
    def network(self) -> str | None:
        """The network of the lab that it is in; None in user mode."""
        return self._line.plan.network if self._line else None

    @property
    def simulated_bridge(self) -> str | None:
        """The bridge of a host that its network stands for; None if that is what it seems to be."""
        return self._line.plan.stands_for if self._line else None

    @property
    def address(self) -> str | None:
        """Its address; None in user mode, and on a real LAN until a server gave it one."""
        return self._line.address if self._line else None

    @property
    def lan(self) -> str | None:
        """The networks, by their name in the run, that lead to it; None in user mode and on a real LAN."""
        return self._line.lan if self._line else None

    def unplug(self) -> None:
        """Pull the cable: the guest sees that its link is down.

        Raises:
            GuestError: the guest is off.
            HostError: libvirt cannot.
        """
        self._machine.domain.set_link(self.mac, up=False)

    def plug(self) -> None:
        """Put the cable back.

        Raises:
            GuestError: the guest is off.
            HostError: libvirt cannot.
        """
        self._machine.domain.set_link(self.mac, up=True)

    def impair(self, *, rate: int | None = None, loss: float = 0.0, delay: float = 0.0) -> None:
        """Make the line a bad one; each call says all that is wrong with it, and none of it heals the line.

        Args:
            rate: bits per second in each direction; None is as many as there may be.
            loss: the share of packets that is lost in each direction, from 0 to 1.
            delay: seconds that each packet to the guest comes later; needs netem in the host's kernel.

        Raises:
            ConfigError: the card is in user mode, or no line can be like that.
            HostError: the kernel cannot do this.
        """
        if not (0 <= loss <= 1 and delay >= 0 and (rate is None or rate > 0)):
            raise ConfigError(
                f"no line has rate {rate}, loss {loss:g}, delay {delay:g}",
                "rate is in bits per second, loss a share from 0 to 1, delay in seconds",
            )
        if self._line is None:
            raise ConfigError(
                f"a card of {self._machine.name} is in user mode, where no line can be made bad",
                "put it into a network of the lab",
            )
        self._line.impair(Impairment(rate, loss, delay))
