"""The networks of one use of a lab: where cards are plugged in, and how a test reaches what is there."""

import itertools
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network

from pytest_kvmlab.errors import ConfigError, HostError
from pytest_kvmlab.keeper.faults import Faults, Impairment
from pytest_kvmlab.keeper.lan_request import LanHost, LanNetwork, LanRequest
from pytest_kvmlab.keeper.lans import Lan, open_lan
from pytest_kvmlab.keeper.real_bridge import require_bridge, subnets_of
from pytest_kvmlab.lab.hosts import Host
from pytest_kvmlab.lab.user_lan import UserLan
from pytest_kvmlab.plan.addresses import gateway_of, overlapping
from pytest_kvmlab.plan.guest import Card
from pytest_kvmlab.plan.network import LabInstance, Member, NetworkPlan, plan_cards, plan_networks
from pytest_kvmlab.spec.guest import NetworkKeys
from pytest_kvmlab.spec.network import LabNetwork

Cards = Mapping[str, Sequence[NetworkKeys]]
"""The network cards of each guest of a lab, in the order of the lab."""

_NUMBERS = itertools.count(1)


@dataclass
class Wiring:
    """What guests of a lab are plugged into.

    Attributes:
        networks: the names of the lab's networks.
        plans: what was decided about each network that was made; those in user mode need not be.
        lan: the networks; None if none had to be made.
        faults: what is wrong on the wires now.
    """

    networks: Collection[str]
    plans: Mapping[str, NetworkPlan]
    lan: Lan | UserLan | None
    faults: Faults = field(default_factory=Faults)

    def cards(self, guest: str, cards: Sequence[NetworkKeys]) -> tuple[Card, ...]:
        """Where the cards of a guest are plugged in."""
        ports = self.lan.ports if isinstance(self.lan, UserLan) else {}
        return plan_cards(guest, cards, self.plans, ports)

    def line(self, guest: str, index: int) -> "Line | None":
        """The line of one card of a guest; None if that is in user mode."""
        lines = (Line(self, plan, member) for plan in self.plans.values() for member in plan.members)
        return next(
            (line for line in lines if (line.member.guest, line.member.index) == (guest, index)), None
        )

    def part(self, one: str, other: str) -> bool:
        """Let two guests not hear each other any more, in no network.

        Returns:
            Whether they have a network in common.

        Raises:
            HostError: the kernel cannot do this.
        """
        pairs = [
            (first.tap, second.tap)
            for plan in self.plans.values()
            for first in plan.members
            for second in plan.members
            if (first.guest, second.guest) == (one, other)
        ]
        if pairs:
            self.break_wires(Faults(self.faults.impaired, [*self.faults.parted, *pairs]))
        return bool(pairs)

    def heal(self) -> None:
        """Make every wire whole again, and every line good."""
        self.break_wires(Faults())

    def break_wires(self, faults: Faults) -> None:
        """Make these all the faults there are.

        Raises:
            HostError: the kernel cannot do this.
        """
        if self.lan:
            self.lan.break_wires(faults)
            self.faults = faults

    def keep(self) -> None:
        """Leave the networks to the run, for the guests in them that stay."""
        if isinstance(self.lan, Lan):
            self.lan.keep()


@dataclass(frozen=True)
class Line:
    """What connects one network card with its network.

    Attributes:
        wiring: the networks.
        plan: its network.
        member: the card in it.
    """

    wiring: Wiring
    plan: NetworkPlan
    member: Member

    @property
    def address(self) -> str | None:
        """The address of the card: known before its guest boots, or, on a real LAN, seen since."""
        return str(self.member.address) if self.member.address else self.seen

    @property
    def seen(self) -> str | None:
        """The address that the card has: as leased in a network of the lab, or seen on a real LAN."""
        return self.wiring.lan.addresses().get(self.member.mac) if self.wiring.lan else None

    @property
    def lan(self) -> str | None:
        """The name, among those of the run, of the networks that lead to it; None where this process does."""
        lan, address = self.wiring.lan, self.address
        return lan.request.lan if isinstance(lan, Lan) and address and lan.leads_to(address) else None

    @property
    def early(self) -> bool:
        """Whether a connection is accepted before the guest can."""
        return isinstance(self.wiring.lan, UserLan)

    def impair(self, impairment: Impairment) -> None:
        """Make it a bad line, or, with nothing wrong, a good one.

        Raises:
            HostError: the kernel cannot do this.
        """
        faults = self.wiring.faults
        self.wiring.break_wires(Faults({**faults.impaired, self.member.tap: impairment}, faults.parted))

    def dial(self, port: int, seconds: float) -> socket.socket:
        """Open a connection to a TCP port of the guest.

        Raises:
            OSError: nobody accepts there, or the card has no address yet.
        """
        address = self.address
        if address is None:
            raise OSError(f"{self.member.guest} has no address in {self.plan.network} yet")
        assert self.wiring.lan  # noqa: S101  a line is in a network that was made
        return self.wiring.lan.dial(address, port, seconds)


NO_WIRING = Wiring((), {}, None)
"""What a guest that is of no lab is plugged into."""


def require_networks(host: Host, networks: Mapping[str, LabNetwork], *, source: str, keep: bool) -> None:
    """See that a host can have the networks of a lab, before anything is built or waited for.

    Args:
        host: where its guests are to run.
        networks: the networks of the lab.
        source: who asks, for messages.
        keep: whether guests may be wanted after the run.

    Raises:
        HostError: it cannot: they need namespaces, and it has none; or it has no such bridge.
    """
    made = {name: network for name, network in networks.items() if network.mode != "user"}
    if made and not host.choice.private:
        _refuse_without_namespaces(host, made, source, keep=keep)
    for name, network in made.items():
        if network.bridge and not network.is_ours:
            require_bridge(name, network.bridge)


def _refuse_without_namespaces(
    host: Host, networks: Mapping[str, LabNetwork], source: str, *, keep: bool
) -> None:
    if why := _why_not(host, networks, keep=keep):
        raise HostError(
            f"{source}: {why} a private host, and guests run on {host.choice.kind}: {host.choice.why}",
            'use --kvm-host=private, or networks = [{ mode = "user" }]',
            check="namespaces",
        )


def _why_not(host: Host, networks: Mapping[str, LabNetwork], *, keep: bool) -> str:
    if host.choice.kind != "embed":
        return f"networks ({', '.join(networks)}) need"
    for name, network in networks.items():
        if not network.is_ours:
            return f"network '{name}' is on the real bridge {network.bridge}, which needs"
        if network.uplink:
            return f"network '{name}' has an uplink, which needs"
    return "guests in networks that are to be kept need" if keep else ""


@contextmanager
def wired(
    host: Host,
    worker: str,
    networks: Mapping[str, LabNetwork],
    cards: Cards,
    *,
    source: str,
) -> Iterator[Wiring]:
    """Make the networks of a lab, as long as the context lasts.

    Args:
        host: where its guests run; it can have such networks (`require_networks`).
        worker: this process's name within the run.
        networks: the networks of the lab.
        cards: the cards in them.
        source: the lab as the reader knows it, for messages.

    Raises:
        HostError: they cannot be made.
        ConfigError: no subnet is left for a network that was given none, or one that was given overlaps that
            of a real LAN.
    """
    lans = _subnets_of_lans(networks)
    instance = LabInstance(host.folder.run, f"{worker}-{next(_NUMBERS)}", tuple(lans))
    plans = plan_networks(networks, cards, instance)
    if not plans:
        yield Wiring(networks, {}, None)
        return
    _refuse_overlaps(plans, lans, source)
    request = LanRequest(instance.name, tuple(_network(plan) for plan in plans.values()))
    with closing(_opened(host, request)) as lan:
        yield Wiring(networks, plans, lan)


def _subnets_of_lans(networks: Mapping[str, LabNetwork]) -> list[IPv4Network]:
    """The subnets of the real LANs that a lab is on."""
    bridges = [network.bridge for network in networks.values() if network.bridge and not network.is_ours]
    return [subnet for bridge in dict.fromkeys(bridges) for subnet in subnets_of(bridge)]


def _refuse_overlaps(plans: Mapping[str, NetworkPlan], lans: Sequence[IPv4Network], source: str) -> None:
    """An address in both would be two machines: a guest, and whoever has it on the LAN."""
    subnets = {name: plan.subnet for name, plan in plans.items() if plan.subnet}
    for name, lan in overlapping(subnets, lans):
        raise ConfigError(
            f"{source}: network '{name}' has the subnet {subnets[name]}, which overlaps {lan} of a real LAN "
            "that the lab is on",
            f"give it another one, or none: [network.{name}] subnet",
        )


def _opened(host: Host, request: LanRequest) -> Lan | UserLan:
    return open_lan(host.folder, request) if host.choice.private else UserLan(host.folder.run, request)


def _network(plan: NetworkPlan) -> LanNetwork:
    gateway = f"{gateway_of(plan.subnet)}/{plan.subnet.prefixlen}" if plan.subnet else None
    return LanNetwork(
        name=plan.network,
        bridge=plan.bridge,
        gateway=gateway,
        domain=plan.domain,
        uplink=plan.uplink,
        port_on=plan.port_on,
        hosts=tuple(_host(member) for member in plan.members),
    )


def _host(member: Member) -> LanHost:
    return LanHost(
        mac=member.mac,
        address=str(member.address) if member.address else None,
        name=member.hostname,
        tap=member.tap,
    )
