"""Where networks of a lab cannot be had."""

import socket
from ipaddress import IPv4Network
from pathlib import Path
from typing import cast

import pytest

from pytest_kvmlab.drivers.libvirt import Connection
from pytest_kvmlab.errors import ConfigError, HostError
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.lab import wiring as module
from pytest_kvmlab.lab.hosts import Host, HostChoice
from pytest_kvmlab.lab.wiring import require_networks, wired
from pytest_kvmlab.plan.guest import StreamWire
from pytest_kvmlab.spec.guest import NetworkKeys
from pytest_kvmlab.spec.network import LabNetwork, NetworkMode

CARDS = {"web": [NetworkKeys(name="campus")]}


def host(kind: str) -> Host:
    def dial(*_: object) -> object:
        pytest.fail("nothing is dialled")

    choice = HostChoice(kind, "asked for")
    return Host(choice, RunFolder(Path("/runs/0123abcd")), cast(Connection, None), dial)  # type: ignore[arg-type] # it never returns


def test_a_subnet_that_overlaps_a_real_lan_of_the_lab_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "subnets_of", lambda bridge: [IPv4Network("10.77.0.0/16")] * (bridge == "br0")
    )
    lan, closed = LabNetwork(mode="bridge", bridge="br0"), LabNetwork(mode="isolated")
    overlap = LabNetwork.model_validate({"mode": "nat", "subnet": "10.77.0.0/24"})
    with (
        pytest.raises(
            ConfigError, match=r"shop: network 'campus' .*10.77.0.0/24, which overlaps 10.77.0.0/16"
        ),
        wired(host("private"), "main", {"lan": lan, "campus": overlap}, CARDS, source="shop"),
    ):
        pytest.fail("they were made")
    assert module._subnets_of_lans({"lan": lan, "closed": closed}) == [IPv4Network("10.77.0.0/16")]
    assert module._subnets_of_lans({"closed": closed}) == []


BY_SOCKETS = {"campus": LabNetwork(mode="isolated")}


@pytest.mark.parametrize(
    ("kind", "networks", "keep", "why"),
    [
        ("qemu:///system", BY_SOCKETS, False, r"networks \(campus\) need"),
        (
            "embed",
            {"campus": LabNetwork(mode="nat", uplink=True)},
            False,
            "'campus' has an uplink, which needs",
        ),
        (
            "embed",
            {"campus": LabNetwork(mode="bridge", bridge="br0")},
            False,
            "'campus' is on the real bridge br0, which needs",
        ),
        ("embed", BY_SOCKETS, True, "guests in networks that are to be kept need"),
    ],
)
def test_what_cannot_be_had_without_namespaces_is_refused_with_the_reason_before_anything_starts(
    kind: str, networks: dict[str, LabNetwork], keep: bool, why: str
) -> None:
    with pytest.raises(HostError, match=rf"shop: .*{why} a private host.* on {kind}: asked for"):
        require_networks(host(kind), networks, source="shop", keep=keep)


def test_a_bridge_that_is_not_there_is_refused_before_anything_starts() -> None:
    lan = LabNetwork(mode="bridge", bridge="kvl-none")
    with pytest.raises(HostError, match="network 'lan': this host has no bridge kvl-none"):
        require_networks(host("private"), {"lan": lan}, source="shop", keep=False)
    made = LabNetwork(mode="bridge", bridge="kvl-none", simulated=True)
    require_networks(host("private"), {"lan": made}, source="shop", keep=False)


@pytest.mark.parametrize("mode", ["isolated", "nat"])
def test_without_namespaces_cards_are_connected_to_a_switch_of_this_process(mode: NetworkMode) -> None:
    networks = {"campus": LabNetwork(mode=mode)}
    with wired(host("embed"), "main", networks, CARDS, source="shop") as wiring:
        (card,) = wiring.cards("web", CARDS["web"])
        assert isinstance(card.wire, StreamWire)
        socket.create_connection(("127.0.0.1", card.wire.port)).close()
        line = wiring.line("web", 0)
        assert line is not None
        assert (line.early, line.lan) == (True, None)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", card.wire.port))


def test_networks_in_user_mode_are_had_everywhere() -> None:
    networks = {"campus": LabNetwork(mode="user")}
    require_networks(host("qemu:///system"), networks, source="shop", keep=True)
    with wired(host("embed"), "main", networks, CARDS, source="shop") as wiring:
        assert wiring.line("web", 0) is None
        assert len(wiring.cards("web", CARDS["web"])) == 1
