"""Addresses as they are written, and as they are chosen."""

import random
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.plan.addresses import (
    choose_subnets,
    free_addresses,
    gateway_of,
    overlapping,
)
from pytest_kvmlab.spec.addresses import parse_address, parse_interface, parse_mac, parse_subnet
from pytest_kvmlab.spec.network import LabNetwork


@pytest.mark.parametrize(
    ("parse", "written", "said"),
    [
        (parse_mac, "52:54:00:12:34", "such as '52:54:00:12:34:68'"),
        (parse_mac, "53:54:00:12:34:68", "multicast"),
        (parse_address, "10.77.0.256", "such as '10.77.0.10'"),
        (parse_address, "10.77.0.010", "such as '10.77.0.10'"),
        (parse_address, "10.77.0.10\n", "such as '10.77.0.10'"),
        (parse_address, "\u0661\u0660.77.0.10", "such as '10.77.0.10'"),
        (parse_address, 169672714, "such as '10.77.0.10'"),
        (parse_address, "fe80::1", "such as '10.77.0.10'"),
        (parse_address, "127.0.0.1", "no network card can have"),
        (parse_address, "0.0.0.1", "no network card can have"),
        (parse_address, "169.254.1.1", "no network card can have"),
        (parse_address, "224.0.0.1", "no network card can have"),
        (parse_address, "255.255.255.255", "no network card can have"),
        (parse_subnet, "10.77.0.0", "such as '10.77.0.0/24'"),
        (parse_subnet, "10.77.0.0/255.255.255.0", "such as '10.77.0.0/24'"),
        (parse_subnet, "10.77.0.0/33", "such as '10.77.0.0/24'"),
        (parse_subnet, "10.77.0.1/24", "the network itself is '10.77.0.0/24'"),
        (parse_subnet, "10.0.0.0/15", "from /16 to /30"),
        (parse_subnet, "10.0.0.0/31", "from /16 to /30"),
        (parse_subnet, "224.0.0.0/24", "no card can be in"),
        (parse_interface, "", "name of a bridge"),
        (parse_interface, "br 0", "name of a bridge"),
        (parse_interface, "../br0", "name of a bridge"),
        (parse_interface, "br0\n", "name of a bridge"),
        (parse_interface, "a-bridge-too-far", "longer than 15"),
    ],
)
def test_what_is_no_address_is_refused(parse: Callable[[object], object], written: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(written)


def test_what_is_an_address_is_taken() -> None:
    assert parse_mac("52:54:00:AB:CD:EF") == "52:54:00:ab:cd:ef"
    assert parse_address("10.77.0.10") == IPv4Address("10.77.0.10")
    assert [str(parse_subnet(text)) for text in ("10.0.0.0/16", "10.77.0.4/30")] == [
        "10.0.0.0/16",
        "10.77.0.4/30",
    ]
    assert parse_interface("br-campus_0.10") == "br-campus_0.10"


def isolated(*names: str, **written: str) -> dict[str, LabNetwork]:
    asked = dict.fromkeys(names, "") | written
    return {
        name: LabNetwork.model_validate({"mode": "isolated"} | ({"subnet": subnet} if subnet else {}))
        for name, subnet in asked.items()
    }


def test_a_network_has_the_same_subnet_in_every_run() -> None:
    assert choose_subnets(isolated("campus")) == choose_subnets(isolated("campus"))
    assert choose_subnets(isolated("campus", lan="10.77.0.0/24")) == {
        **choose_subnets(isolated("campus")),
        "lan": IPv4Network("10.77.0.0/24"),
    }


def test_chosen_subnets_never_overlap_each_other_or_what_is_there() -> None:
    names = [f"net-{number}" for number in range(40)]
    first = choose_subnets(isolated(*names))
    routes = [*first.values(), IPv4Network("10.220.0.0/14"), IPv4Network("0.0.0.0/0")]
    again = choose_subnets(isolated(*names), routes)
    for subnets in (first, again):
        assert all(subnet.subnet_of(IPv4Network("10.192.0.0/10")) for subnet in subnets.values())
        assert not any(one.overlaps(other) for one, other in combinations(subnets.values(), 2))
    assert overlapping(again, routes) == []


def test_where_no_subnet_is_left_one_has_to_be_written() -> None:
    routes = [IPv4Network("10.0.0.0/8")]
    with pytest.raises(ConfigError, match="no subnet is left for network 'campus'"):
        choose_subnets(isolated("campus"), routes)
    assert choose_subnets(isolated(campus="10.77.0.0/24"), routes)


def test_a_network_that_is_not_ours_gets_no_subnet() -> None:
    lan = LabNetwork(mode="bridge", bridge="br0")
    assert choose_subnets({"lan": lan, "out": LabNetwork(mode="user")}) == {}
    assert list(choose_subnets({"lan": lan.model_copy(update={"simulated": True})})) == ["lan"]


def test_free_addresses_are_inside_the_subnet_and_nobody_elses() -> None:
    dice = random.Random(1)  # noqa: S311  the same subnets in every run
    for _ in range(200):
        prefix = dice.randrange(25, 31)
        subnet = IPv4Network((dice.randrange(2**24, 2**31), prefix), strict=False)
        everyone = set(subnet.hosts()) - {gateway_of(subnet)}
        fixed = set(dice.sample(sorted(everyone), dice.randrange(len(everyone) + 1)))
        free = list(free_addresses(subnet, fixed))
        assert free == sorted(everyone - fixed)


@pytest.mark.parametrize(
    ("route", "found"),
    [
        ("10.77.0.0/24", ["campus"]),
        ("10.77.0.128/25", ["campus"]),
        ("10.77.0.9/32", ["campus"]),
        ("10.0.0.0/8", ["campus", "lan"]),
        ("10.76.0.0/16", []),
        ("0.0.0.0/0", []),
        ("0.0.0.0/1", []),
    ],
)
def test_a_subnet_that_the_host_has_a_route_to_is_found(route: str, found: list[str]) -> None:
    subnets = {"campus": IPv4Network("10.77.0.0/24"), "lan": IPv4Network("10.78.0.0/24")}
    assert overlapping(subnets, [IPv4Network(route)]) == [(name, IPv4Network(route)) for name in found]
