"""The networks of one use of a lab: where cards are plugged in, and how a test reaches what is there."""

import itertools
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.lan_request import LanHost, LanNetwork, LanRequest
from pytest_kvmlab.keeper.lans import Lan, open_lan
from pytest_kvmlab.lab.hosts import Host
from pytest_kvmlab.plan.addresses import gateway_of
from pytest_kvmlab.plan.guest import Card
from pytest_kvmlab.plan.network import Attachment, LabInstance, Member, NetworkPlan, plan_cards, plan_networks
from pytest_kvmlab.spec.guest import NetworkKeys
from pytest_kvmlab.spec.network import LabNetwork

Dial = Callable[[int, float], socket.socket]
"""Opens a connection to a TCP port of a guest, within seconds; raises OSError if nobody accepts."""

Cards = Mapping[str, Sequence[NetworkKeys]]
"""The network cards of each guest of a lab, in the order of the lab."""

_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Wiring:
    """What guests of a lab are plugged into.

    Attributes:
        networks: the names of the lab's networks.
        plans: what was decided about each network that was made; those in user mode need not be.
        lan: the networks; None if none had to be made.
        attachment: through what cards get into them.
    """

    networks: Collection[str]
    plans: Mapping[str, NetworkPlan]
    lan: Lan | None
    attachment: Attachment

    def cards(self, guest: str, cards: Sequence[NetworkKeys]) -> tuple[Card, ...]:
        """Where the cards of a guest are plugged in."""
        return plan_cards(guest, cards, self.plans, self.attachment)

    def dial(self, guest: str) -> Dial | None:
        """How a guest is reached by its first card; None if that is in user mode."""
        for plan in self.plans.values():
            for member in plan.members:
                if (member.guest, member.index) == (guest, 0):
                    return partial(self._dial, plan, member)
        return None

    def address(self, member: Member) -> str | None:
        """The address of a card: known before its guest boots, or, on a real LAN, seen since."""
        if member.address or self.lan is None:
            return str(member.address) if member.address else None
        return self.lan.addresses().get(member.mac)

    def keep(self) -> None:
        """Leave the networks to the run, for the guests in them that stay."""
        if self.lan:
            self.lan.keep()

    def _dial(self, plan: NetworkPlan, member: Member, port: int, seconds: float) -> socket.socket:
        address = self.address(member)
        if address is None:
            raise OSError(f"{member.guest} has no address in {plan.network} yet")
        if plan.port_on is None and self.lan:
            return self.lan.dial(address, port, seconds)
        return socket.create_connection((address, port), timeout=seconds)


NO_WIRING = Wiring((), {}, None, "bridge")
"""What a guest that is of no lab is plugged into."""


@contextmanager
def wired(
    host: Host, worker: str, networks: Mapping[str, LabNetwork], cards: Cards, *, source: str
) -> Iterator[Wiring]:
    """Make the networks of a lab, as long as the context lasts.

    Args:
        host: where its guests run.
        worker: this process's name within the run.
        networks: the networks of the lab.
        cards: the cards in them.
        source: the lab as the reader knows it, for messages.

    Raises:
        HostError: this host cannot have such networks, or they cannot be made.
        ConfigError: no subnet is left for a network that was given none.
    """
    instance = LabInstance(host.folder.run, f"{worker}-{next(_NUMBERS)}")
    plans = plan_networks(networks, cards, instance)
    if not plans:
        yield Wiring(networks, {}, None, "bridge")
        return
    _require_private(host, plans, source)
    attachment: Attachment = "bridge" if os.geteuid() == 0 else "tap"
    request = LanRequest(instance.name, tuple(_network(plan, attachment) for plan in plans.values()))
    with closing(open_lan(host.folder, request)) as lan:
        yield Wiring(networks, plans, lan, attachment)


def _require_private(host: Host, plans: Mapping[str, NetworkPlan], source: str) -> None:
    if not host.choice.private:
        raise HostError(
            f"{source}: networks ({', '.join(plans)}) need a private host, and guests run on "
            f"{host.choice.kind}: {host.choice.why}",
            'use --kvm-host=private, or networks = [{ mode = "user" }]',
            check="namespaces",
        )


def _network(plan: NetworkPlan, attachment: Attachment) -> LanNetwork:
    gateway = f"{gateway_of(plan.subnet)}/{plan.subnet.prefixlen}" if plan.subnet else None
    return LanNetwork(
        name=plan.network,
        bridge=plan.bridge,
        gateway=gateway,
        domain=plan.domain,
        uplink=plan.uplink,
        port_on=plan.port_on,
        hosts=tuple(_host(member, attachment) for member in plan.members),
    )


def _host(member: Member, attachment: Attachment) -> LanHost:
    return LanHost(
        mac=member.mac,
        address=str(member.address) if member.address else None,
        name=member.hostname,
        tap=member.tap if attachment == "tap" else None,
    )
