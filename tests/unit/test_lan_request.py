"""What may be asked of the process that makes the networks of a lab, and what it makes of that."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_kvmlab.keeper.faults import Faults, Impairment, as_faults, faults_as_document, rules, shaping
from pytest_kvmlab.keeper.lan_request import (
    LONGEST,
    MOST_HOSTS,
    MOST_NETWORKS,
    LanHost,
    LanNetwork,
    LanRequest,
    as_document,
    as_request,
)
from pytest_kvmlab.keeper.links import making, raising
from pytest_kvmlab.keeper.names_and_leases import NameServer, as_leases
from pytest_kvmlab.keeper.uplink import rules as rules_of_uplink

WEB = LanHost("52:54:00:00:00:01", "10.77.0.10", "web", tap="ktweb")
CAMPUS = LanNetwork("campus", "kbcampus", "10.77.0.1/24", "campus.test", uplink=True, hosts=(WEB,))
REAL = LanNetwork("real", "kbreal", port_on="br0", hosts=(LanHost("52:54:00:00:00:02"),))
REQUEST = LanRequest("gw0-1", (CAMPUS, REAL))


def sent(request: LanRequest) -> dict[str, Any]:
    document = json.loads(json.dumps(as_document(request)))
    assert isinstance(document, dict)
    return document


# Requests


def test_a_request_arrives_as_it_was_sent() -> None:
    assert as_request(sent(REQUEST)) == REQUEST


def test_the_largest_request_is_not_too_long() -> None:
    label = "a" * 31
    hosts = [
        LanHost(
            f"52:54:00:00:{network:02x}:{host:02x}",
            f"10.{network}.255.{host}",
            label,
            f"kt{'a' * 9}{network}{host:03}",
        )
        for network in range(MOST_NETWORKS)
        for host in range(MOST_HOSTS)
    ]
    networks = [
        LanNetwork(
            f"{label[:-1]}{number}", f"kb{'a' * 12}{number}", f"10.{number}.0.1/16", "a.test",
            hosts=tuple(hosts[number * MOST_HOSTS : (number + 1) * MOST_HOSTS]),
        )
        for number in range(MOST_NETWORKS)
    ]  # fmt: skip
    request = LanRequest("a" * 20, tuple(networks))
    assert len(json.dumps(as_document(request))) < LONGEST
    assert as_request(sent(request)) == request


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    document = sent(REQUEST)
    change(document)
    return document


@pytest.mark.parametrize(
    "change",
    [
        lambda asked: asked.pop("lan"),
        lambda asked: asked.update(more=1),
        lambda asked: asked.update(lan="../other"),
        lambda asked: asked.update(networks=asked["networks"] * 5),
        lambda asked: asked.update(networks=[asked["networks"][0]] * 2),
        lambda asked: asked["networks"][0].update(name="--help"),
        lambda asked: asked["networks"][0].update(bridge="kb a\nlink delete dev lo"),
        lambda asked: asked["networks"][0].update(bridge="br0"),
        lambda asked: asked["networks"][0].update(bridge="kbabcdefghijklmn"),
        lambda asked: asked["networks"][0].update(gateway="10.77.0.1"),
        lambda asked: asked["networks"][0].update(gateway=7),
        lambda asked: asked["networks"][0].update(gateway=None),
        lambda asked: asked["networks"][0].update(gateway="198.18.0.1/24"),
        lambda asked: asked["networks"][0].update(domain="a..b"),
        lambda asked: asked["networks"][0].update(domain="-a"),
        lambda asked: asked["networks"][0].update(uplink="yes"),
        lambda asked: asked["networks"][1].update(uplink=True),
        lambda asked: asked["networks"][1].update(port_on="--all"),
        lambda asked: asked["networks"][1].update(gateway="10.78.0.1/24"),
        lambda asked: asked["networks"][0]["hosts"].append("web"),
        lambda asked: asked["networks"][0]["hosts"].extend(asked["networks"][0]["hosts"] * MOST_HOSTS),
        lambda asked: asked["networks"][0]["hosts"][0].update(mac="52:54:00:00:00:01,set:x"),
        lambda asked: asked["networks"][0]["hosts"][0].update(mac="ff:ff:ff:ff:ff:ff"),
        lambda asked: asked["networks"][0]["hosts"][0].update(address="10.78.0.10"),
        lambda asked: asked["networks"][0]["hosts"][0].update(address="10.77.0.10/24"),
        lambda asked: asked["networks"][0]["hosts"][0].update(name="web,db"),
        lambda asked: asked["networks"][0]["hosts"][0].update(name="web\n"),
        lambda asked: asked["networks"][0]["hosts"][0].update(tap="lo"),
        lambda asked: asked["networks"][0]["hosts"][0].update(tap="kvcampus"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        as_request(changed(change))


# What becomes of them


def test_devices_are_made_before_they_are_plugged_in() -> None:
    assert making(REQUEST, 7, 1000) == [
        "link add name kbcampus type bridge stp_state 0 forward_delay 0",
        "link set dev kbcampus addrgenmode none up",
        "link add name kvcampus type veth peer name lan0 netns 7",
        "link set dev kvcampus master kbcampus addrgenmode none up",
        "tuntap add dev ktweb mode tap user 1000 vnet_hdr",
        "link set dev ktweb master kbcampus addrgenmode none up",
        "link add name kbreal type bridge stp_state 0 forward_delay 0",
        "link set dev kbreal addrgenmode none up",
    ]


def test_only_networks_with_a_gateway_of_ours_get_an_address() -> None:
    assert raising(REQUEST) == [
        "link set dev lo up",
        "address add 10.77.0.1/24 dev lan0",
        "link set dev lan0 addrgenmode none up",
    ]


def test_cards_are_given_their_addresses_and_names() -> None:
    command = NameServer(CAMPUS, "lan0", Path("/run")).command()
    assert "--dhcp-host=52:54:00:00:00:01,10.77.0.10,web,infinite" in command
    assert "--host-record=web.campus.test,web,10.77.0.10" in command
    assert "--dhcp-range=10.77.0.0,static,255.255.255.0,infinite" in command
    assert "--interface=lan0" in command


def test_a_network_without_a_way_out_offers_no_router() -> None:
    closed = NameServer(replace(CAMPUS, uplink=False), "lan0", Path("/run")).command()
    assert "--dhcp-option=option:router" in closed
    assert not [word for word in closed if word.startswith("--server")]
    assert "--dhcp-option=option:router" not in NameServer(CAMPUS, "lan0", Path("/run")).command()


def test_leases_are_read_and_rubbish_among_them_is_passed_by() -> None:
    text = "0 52:54:00:00:00:01 10.77.0.10 web 01:52:54:00:00:00:01\nduid 00:01\n\nrubbish\n"
    assert as_leases(text) == {"52:54:00:00:00:01": "10.77.0.10"}


def test_only_networks_with_an_uplink_are_led_out() -> None:
    text = rules_of_uplink(["lan0", "lan2"])
    assert 'iifname { "lan0", "lan2" } oifname "tap0" accept' in text
    assert "policy drop" in text


# Faults


BROKEN = Faults(
    {"kta": Impairment(rate=1_000_000, loss=0.25), "ktb": Impairment(delay=0.05)}, [("kta", "ktb")]
)


def test_faults_arrive_as_they_were_sent() -> None:
    assert as_faults(json.loads(json.dumps(faults_as_document(BROKEN))), ["kta", "ktb"]) == BROKEN


@pytest.mark.parametrize(
    "document",
    [
        "all of them",
        {"impaired": {}},
        {"impaired": {"ktc": asdict(Impairment())}, "parted": []},
        {"impaired": {"kta": {"rate": 7, "loss": 0, "delay": 0}}, "parted": []},
        {"impaired": {"kta": {"rate": None, "loss": 1.1, "delay": 0}}, "parted": []},
        {"impaired": {"kta": {"rate": None, "loss": 0, "delay": "1; drop"}}, "parted": []},
        {"impaired": {"kta": {"rate": None, "loss": 0, "delay": -1}}, "parted": []},
        {"impaired": {}, "parted": [["kta", "ktc"]]},
        {"impaired": {}, "parted": [["kta"]]},
    ],
)
def test_what_are_no_faults_are_refused(document: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        as_faults(document, ["kta", "ktb"])


def test_a_slow_line_is_slow_by_one_discipline_and_a_delayed_one_by_another() -> None:
    assert shaping(BROKEN) == {
        "kta": "qdisc replace dev kta root tbf rate 1000000bit burst 131072 latency 200ms",
        "ktb": "qdisc replace dev ktb root netem delay 50000us limit 100000",
    }


def test_the_rules_of_a_lan_replace_those_it_had() -> None:
    text = rules("gw0-1", BROKEN)
    assert text.startswith("table bridge faults_gw0_1\ndelete table bridge faults_gw0_1\ntable bridge")
    assert 'iifname "kta" oifname "ktb" drop' in text
    assert 'iifname "ktb" oifname "kta" drop' in text
    assert 'oifname "kta" numgen random mod 1000000 < 250000 drop' in text
    assert 'iifname "kta" limit rate over 125000 bytes/second burst 131072 bytes drop' in text
