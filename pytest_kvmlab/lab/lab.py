"""A lab that is up: its guests, networks and applications."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.wiring import Line, Wiring
from pytest_kvmlab.spec.labfile import LabSpec
from pytest_kvmlab.spec.names import nearest


@dataclass(frozen=True)
class Network:
    """A network of a lab that is up.

    Attributes:
        name: its name in the lab.
        subnet: its addresses, such as `10.77.0.0/24`; None on a real LAN, which has its own.
        bridge: the bridge of the host whose LAN it is a part of, or None.
        addresses: the address of each guest's first card in it, by the guest's name; a guest that the DHCP
            server of a real LAN has given none yet is missing.
    """

    name: str
    subnet: str | None
    bridge: str | None
    addresses: Mapping[str, str]


@dataclass(frozen=True)
class Lab(Mapping[str, Guest]):
    """The guests of a lab by name, all of them ready: `lab["web"].succeed("ping -c 1 db")`.

    Attributes:
        spec: the lab as its file describes it.
        guests: the guests by name.
    """

    spec: LabSpec
    guests: Mapping[str, Guest]
    _wiring: Wiring

    @property
    def name(self) -> str:
        """The lab's name."""
        return self.spec.name

    @property
    def networks(self) -> dict[str, Network]:
        """The networks that were made for the lab, by name, with the addresses as they are now."""
        return {
            name: Network(
                name,
                str(plan.subnet) if plan.subnet else None,
                plan.port_on,
                {
                    member.guest: address
                    for member in plan.members
                    if member.hostname and (address := Line(self._wiring, plan, member).address)
                },
            )
            for name, plan in self._wiring.plans.items()
        }

    def url(self, app: str, path: str = "") -> str:
        """An HTTP address under which this machine reaches an application, as long as its guest lives.

        Args:
            app: the application's name in the lab file.
            path: what follows the application's own path.

        Raises:
            ConfigError: the lab has no such application.
        """
        if app not in self.spec.apps:
            raise ConfigError(
                f"lab {self.name} has no application {app!r}{nearest(app, self.spec.apps)}",
                f"its applications: {', '.join(self.spec.apps) or 'none'}",
            )
        found = self.spec.apps[app]
        return self[found.guest].url(found.port, f"{found.path}{path}")

    def partition(self, one: str, other: str) -> None:
        """Let two guests not hear each other any more; the test, and other guests, still reach both.

        Args:
            one: a guest's name.
            other: another's.

        Raises:
            ConfigError: the lab has no such guest, or the two have no network in common.
            HostError: the kernel cannot do this.
        """
        if not self._wiring.part(self[one].name, self[other].name):
            raise ConfigError(f"lab {self.name}: {one} and {other} have no network in common")

    def heal(self) -> None:
        """Let all guests hear each other again, and make every bad line a good one.

        Raises:
            HostError: the networks are gone.
        """
        self._wiring.heal()

    def reset(self) -> None:
        """Make every guest as it was at first, each after those that the lab has it start after.

        Raises:
            GuestError: one does not get ready again.
        """
        for guest in self.guests.values():
            guest.crash()  # first all of them: what one says now is not for what the others become
        for name in TopologicalSorter({name: self.spec.guests[name].after for name in self}).static_order():
            self[name].reset()

    def __getitem__(self, name: str) -> Guest:
        """The guest of that name.

        Raises:
            ConfigError: the lab has no such guest.
        """
        if name not in self.guests:
            raise ConfigError(
                f"lab {self.name} has no guest {name!r}{nearest(name, self.guests)}",
                f"its guests: {', '.join(self.guests)}",
            )
        return self.guests[name]

    def __iter__(self) -> Iterator[str]:
        """The names of the guests, in the order of the lab file."""
        return iter(self.guests)

    def __len__(self) -> int:
        """How many guests it has."""
        return len(self.guests)
