"""Where networks of a lab cannot be had."""

from pathlib import Path
from typing import cast

import pytest

from pytest_kvmlab.drivers.libvirt import Connection
from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.lab.hosts import Host, HostChoice
from pytest_kvmlab.lab.wiring import wired
from pytest_kvmlab.spec.guest import NetworkKeys
from pytest_kvmlab.spec.network import LabNetwork

CARDS = {"web": [NetworkKeys(name="campus")]}


def host(kind: str) -> Host:
    def dial(*_: object) -> object:
        pytest.fail("nothing is dialled")

    choice = HostChoice(kind, "asked for")
    return Host(choice, RunFolder(Path("/runs/0123abcd")), cast(Connection, None), dial)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["embed", "qemu:///system"])
def test_networks_on_another_host_are_refused_with_the_reason_before_anything_starts(kind: str) -> None:
    networks = {"campus": LabNetwork(mode="nat")}
    told = rf"shop: networks \(campus\) need a private host.* on {kind}: asked for"
    with (
        pytest.raises(HostError, match=told),
        wired(host(kind), "main", networks, CARDS, source="shop"),
    ):
        pytest.fail("they were made")


def test_networks_in_user_mode_are_had_everywhere() -> None:
    networks = {"campus": LabNetwork(mode="user")}
    with wired(host("embed"), "main", networks, CARDS, source="shop") as wiring:
        assert wiring.line("web", 0) is None
        assert len(wiring.cards("web", CARDS["web"])) == 1
