"""What cannot be true at once in a lab."""

import pytest

from pytest_kvmlab.keeper import lan_request
from pytest_kvmlab.spec.application import LabApp
from pytest_kvmlab.spec.conflicts import MOST_CARDS, MOST_NETWORKS, UPLINKS, find_conflicts
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.network import LabNetwork

Table = dict[str, object]
NAT: Table = {"mode": "nat", "subnet": "10.77.0.0/24"}


def conflicts(
    networks: dict[str, Table], cards: dict[str, list[object]], apps: dict[str, Table] | None = None
) -> list[str]:
    found = find_conflicts(
        {name: GuestKeys.model_validate({"networks": own}) for name, own in cards.items()},
        {name: LabNetwork.model_validate(written) for name, written in networks.items()},
        {name: LabApp.model_validate(written) for name, written in (apps or {}).items()},
    )
    return [each.said for each in found]


def at(address: str, name: str = "campus") -> Table:
    return {"name": name, "address": address}


def test_a_lab_that_is_right_has_no_conflicts() -> None:
    networks: dict[str, Table] = {
        "campus": NAT,
        "back": {"mode": "isolated", "subnet": "10.77.1.0/24"},
        "lan": {"mode": "bridge", "bridge": "br0"},
        "same": {"mode": "bridge", "bridge": "br0"},
        "empty": {"mode": "isolated"},
        "out": {"mode": "user"},
    }
    cards: dict[str, list[object]] = {
        "web": [at("10.77.0.2"), at("10.77.1.254", "back"), at("192.168.1.7", "lan"), "empty", "out", {}],
        "db": [at("10.77.0.254"), "campus", "lan", {"mac": "52:54:00:00:00:01"}],
        "mute": [],
    }
    apps: dict[str, Table] = {
        "wiki": {"guest": "web", "port": 80},
        "shop": {"guest": "web", "port": 81},
        "sql": {"guest": "db", "port": 80},
    }
    assert conflicts(networks, cards, apps) == []


@pytest.mark.parametrize(
    ("cards", "said"),
    [
        (
            {"web": ["campsu"]},
            "guest.web.networks[0].name: no network is called 'campsu' (did you mean 'campus'?)",
        ),
        (
            {"web": [{"mac": "52:54:00:AA:00:01"}], "db": ["campus", {"mac": "52:54:00:aa:00:01"}]},
            "guest.web.networks[0] and guest.db.networks[1] have one MAC address, 52:54:00:aa:00:01",
        ),
        (
            {"a": [at("10.77.0.9")], "b": [at("10.77.0.9")], "c": [at("10.77.0.9")]},
            "guest.a.networks[0] and guest.b.networks[0] and guest.c.networks[0] have one address, 10.77.0.9",
        ),
        (
            {"web": [at("10.78.0.9")]},
            "networks[0].address: 10.78.0.9 is outside the subnet of network 'campus', 10.77.0.0/24",
        ),
        ({"web": [at("10.77.0.0")]}, "10.77.0.0 is the network address of network 'campus', 10.77.0.0/24"),
        ({"web": [at("10.77.0.1")]}, "10.77.0.1 is the gateway's address of network 'campus', 10.77.0.0/24"),
        (
            {"web": [at("10.77.0.255")]},
            "10.77.0.255 is the broadcast address of network 'campus', 10.77.0.0/24",
        ),
    ],
)
def test_a_card_that_cannot_be_is_refused(cards: dict[str, list[object]], said: str) -> None:
    found = conflicts({"campus": NAT}, cards)
    assert [told.endswith(said) for told in found] == [True], found


@pytest.mark.parametrize(
    ("networks", "said"),
    [
        ({"campus": {"mode": "isolated"}}, "network 'campus' has no subnet that 10.77.0.9 could be in"),
        (
            {"campus": {"mode": "user"}},
            "network 'campus' has mode 'user', in which every guest has the same address",
        ),
        (
            {"campus": NAT, "all": {"mode": "isolated", "subnet": "10.77.0.0/16"}},
            "network.campus.subnet and network.all.subnet overlap: 10.77.0.0/24 and 10.77.0.0/16",
        ),
        (
            {"campus": NAT, "all": {"mode": "isolated", "subnet": "198.18.0.0/16"}},
            "network.all.subnet: 198.18.0.0/16 overlaps 198.18.0.0/24, which uplinks use",
        ),
        (
            {
                "campus": NAT,
                "lan": {"mode": "bridge", "bridge": "br0"},
                "fake": {"mode": "bridge", "bridge": "br0", "simulated": True},
            },
            "network.lan and network.fake have one bridge, which is made for one of them, br0",
        ),
    ],
)
def test_networks_that_cannot_be_are_refused(networks: dict[str, Table], said: str) -> None:
    found = conflicts(networks, {"web": [at("10.77.0.9")]})
    assert [told.endswith(said) for told in found] == [True], found


def test_no_more_is_asked_for_than_the_keeper_makes() -> None:
    assert (MOST_NETWORKS, MOST_CARDS) == (lan_request.MOST_NETWORKS, lan_request.MOST_HOSTS)
    assert UPLINKS == lan_request.UPLINK_SUBNET


def test_a_lab_has_eight_networks_that_are_made_and_no_ninth() -> None:
    user: dict[str, Table] = {"out": {"mode": "user"}}
    made: dict[str, Table] = {f"n{number}": {"mode": "isolated"} for number in range(8)}
    real: dict[str, Table] = {"lan": {"mode": "bridge", "bridge": "br0"}}
    assert conflicts(user | made, {}) == []
    (said,) = conflicts(user | made | real, {})
    assert said.startswith("network: 9 are made for the lab, and 8 is the most: n0, n1,")


def test_a_network_has_64_cards_and_no_65th() -> None:
    networks: dict[str, Table] = {"lan": {"mode": "bridge", "bridge": "br0"}, "out": {"mode": "user"}}
    guests: dict[str, list[object]] = {f"g{number}": ["lan"] * 8 for number in range(8)}
    others: dict[str, list[object]] = {f"u{number}": ["out"] * 8 for number in range(9)}
    assert conflicts(networks, guests | others) == []
    assert conflicts(networks, {**guests, "one-more": ["lan"]}) == [
        "network.lan: 65 network cards, and 64 is the most"
    ]


def test_a_subnet_has_place_for_all_cards_but_one_more() -> None:
    small: dict[str, Table] = {"campus": {"mode": "isolated", "subnet": "10.77.0.0/29"}}
    assert conflicts(small, {"a": ["campus"] * 5}) == []
    assert conflicts(small, {"a": ["campus"] * 6}) == [
        "network.campus.subnet: has 5 addresses for 6 network cards"
    ]


@pytest.mark.parametrize("other", [{}, "out"])
def test_a_network_beside_a_user_mode_card_has_other_addresses_than_that(other: object) -> None:
    networks: dict[str, Table] = {"campus": {"mode": "nat", "subnet": "10.0.0.0/16"}, "out": {"mode": "user"}}
    assert conflicts(networks, {"web": ["campus"], "db": [other]}) == []
    found = conflicts(networks, {"web": [other, "campus"]})
    assert [told.split(": ")[0] for told in found] == ["guest.web.networks[1]"]
    assert "overlaps 10.0.2.0/24, in which the guest has a user-mode card" in found[0]


@pytest.mark.parametrize(
    ("apps", "said"),
    [
        (
            {"wiki": {"guest": "wbe", "port": 80}},
            "app.wiki.guest: no guest is called 'wbe' (did you mean 'web'?)",
        ),
        (
            {"wiki": {"guest": "web", "port": 80}, "shop": {"guest": "web", "port": 80}},
            "app.wiki and app.shop have one guest and port, web:80",
        ),
    ],
)
def test_applications_that_cannot_be_are_refused(apps: dict[str, Table], said: str) -> None:
    assert conflicts({}, {"web": []}, apps) == [said]
