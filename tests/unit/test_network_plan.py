"""What is decided about the networks of a lab before any guest has booted."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network

from pytest_kvmlab.plan.addresses import gateway_of
from pytest_kvmlab.plan.guest import Card, StreamWire, TapWire, UserWire
from pytest_kvmlab.plan.names import bridge_name, tap_name
from pytest_kvmlab.plan.network import LabInstance, NetworkPlan, plan_cards, plan_networks
from pytest_kvmlab.spec.guest import NetworkKeys
from pytest_kvmlab.spec.network import LabNetwork

INSTANCE = LabInstance(run_id="0123abcd", name="main-1")
CAMPUS = {"campus": LabNetwork.model_validate({"mode": "nat", "subnet": "10.77.0.0/24"})}


def cards(**written: Sequence[object]) -> dict[str, list[NetworkKeys]]:
    return {guest: [NetworkKeys.model_validate(card) for card in own] for guest, own in written.items()}


def campus(own: Mapping[str, Sequence[NetworkKeys]], instance: LabInstance = INSTANCE) -> NetworkPlan:
    return plan_networks(CAMPUS, own, instance)["campus"]


def test_addresses_follow_the_order_of_the_lab_around_the_fixed_ones() -> None:
    plan = campus(
        cards(web=["campus", {}], db=[{"name": "campus", "address": "10.77.0.3"}], pc=["campus", "campus"])
    )
    assert [(member.guest, member.index, str(member.address)) for member in plan.members] == [
        ("web", 0, "10.77.0.2"),
        ("db", 0, "10.77.0.3"),
        ("pc", 0, "10.77.0.4"),
        ("pc", 1, "10.77.0.5"),
    ]


def test_the_name_of_a_guest_is_that_of_its_first_card_in_a_network() -> None:
    plan = campus(cards(web=[{}, "campus", "campus"], db=["campus"]))
    assert [member.hostname for member in plan.members] == ["web", None, "db"]


def test_no_two_cards_meet_and_fixed_ones_stay() -> None:
    dice = random.Random(1)  # noqa: S311  the same labs in every run
    subnet = IPv4Network("10.77.0.0/26")
    network = {"campus": LabNetwork.model_validate({"mode": "isolated", "subnet": str(subnet)})}
    everyone = sorted(set(subnet.hosts()) - {gateway_of(subnet)})
    for _ in range(100):
        addresses = [str(address) for address in dice.sample(everyone, len(everyone))]
        fixed: list[object] = [
            {"name": "campus", "address": address} for address in addresses[: dice.randrange(62)]
        ]
        asked = [*fixed, *["campus"] * (len(everyone) - len(fixed))]
        dice.shuffle(asked)
        own = cards(**{f"g{number}": [card] for number, card in enumerate(asked)})
        members = plan_networks(network, own, INSTANCE)["campus"].members
        assert {member.address for member in members} == set(everyone)
        assert (
            len({member.mac for member in members}) == len({member.tap for member in members}) == len(members)
        )
        for member in members:
            assert own[member.guest][0].address in (None, member.address)


def test_the_same_lab_is_planned_the_same_and_two_instances_share_no_name() -> None:
    own = cards(web=["campus"])
    one, other = campus(own), campus(own, replace(INSTANCE, name="main-2"))
    assert one == campus(own)
    assert (one.subnet, one.members[0].address) == (other.subnet, other.members[0].address)
    assert not {one.bridge, one.members[0].tap} & {other.bridge, other.members[0].tap}


def test_cards_in_a_network_of_our_own_have_the_same_macs_in_every_use_so_that_clones_fit() -> None:
    own = cards(web=["campus"])
    one, other = campus(own), campus(own, replace(INSTANCE, run_id="89abcdef", name="main-2"))
    assert one.members[0].mac == other.members[0].mac


def test_on_a_real_lan_no_two_uses_share_a_mac() -> None:
    networks = {"campus": LabNetwork(mode="bridge", bridge="br0")}
    own = cards(web=["campus"])
    one, other = (
        plan_networks(networks, own, replace(INSTANCE, name=name))["campus"] for name in ("main-1", "main-2")
    )
    assert one.members[0].mac != other.members[0].mac


def test_names_of_interfaces_say_their_run_and_fit() -> None:
    long = "a" * 31
    names = [bridge_name("0123abcd", "gw99-1000", long), tap_name("0123abcd", "gw99-1000", long, 7)]
    assert [name[:10] for name in names] == ["kb0123abcd", "kt0123abcd"]
    assert all(len(name) == 15 and name.isalnum() for name in names)


def test_a_network_is_a_part_of_the_real_lan_unless_it_is_simulated() -> None:
    lan = LabNetwork(mode="bridge", bridge="br0")
    networks = {"lan": lan, "fake": lan.model_copy(update={"simulated": True})}
    own = cards(web=["lan", "fake", {"name": "lan", "address": "192.168.1.7"}])
    real, fake = plan_networks(networks, own, INSTANCE).values()
    assert (real.port_on, real.subnet) == ("br0", None)
    assert [str(member.address) for member in real.members] == ["None", "192.168.1.7"]
    assert fake.port_on is None
    assert fake.subnet is not None
    assert fake.members[0].address in fake.subnet


def test_a_user_mode_network_needs_no_plan() -> None:
    networks = {"out": LabNetwork(mode="user")}
    assert plan_networks(networks, cards(web=["out"]), INSTANCE) == {}


def test_a_card_is_plugged_into_its_network() -> None:
    own = cards(web=[{}, "campus"], db=["campus"])
    plan = campus(own)
    assert plan_cards("web", own["web"], {"campus": plan}) == (
        Card(UserWire()),
        Card(TapWire(tap_name("0123abcd", "main-1", "web", 1)), plan.members[0].mac),
    )
    ports = {plan.members[0].tap: 45678}
    assert plan_cards("web", own["web"], {"campus": plan}, ports)[1].wire == StreamWire(45678)


def test_a_plan_tells_a_simulated_bridge_from_a_real_one() -> None:
    networks = {
        name: LabNetwork(mode="bridge", bridge="br0", simulated=simulated)
        for name, simulated in (("made", True), ("real", False))
    }
    plans = plan_networks(networks, {}, INSTANCE)
    assert {name: (plan.port_on, plan.stands_for) for name, plan in plans.items()} == {
        "made": (None, "br0"),
        "real": ("br0", None),
    }
