"""What a guest says of the addresses of its network cards."""

from ipaddress import IPv4Address

import pytest

from pytest_kvmlab.lab.addresses_seen import as_addresses

IPROUTE2 = """\
1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN group default qlen 1000
    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00
    inet 127.0.0.1/8 scope host lo
       valid_lft forever preferred_lft forever
2: eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc fq_codel master br0 state UP group default
    link/ether 52:54:00:12:34:68 brd ff:ff:ff:ff:ff:ff
3: br0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc noqueue state UP group default
    link/ether 52:54:00:12:34:68 brd ff:ff:ff:ff:ff:ff
    inet 10.77.0.10/24 brd 10.77.0.255 scope global dynamic eth0
    inet6 fe80::5054:ff:fe12:3468/64 scope link
4: tun0: <POINTOPOINT,UP> mtu 1500 qdisc noop state UP
    link/none
    inet 10.8.0.1 peer 10.8.0.2/32 scope global tun0
5: eth1: <BROADCAST,MULTICAST> mtu 1500 qdisc noop state DOWN group default
    link/ether 52:54:00:12:34:69 brd ff:ff:ff:ff:ff:ff
"""


def test_the_addresses_of_a_card_are_those_of_all_devices_with_its_mac_address() -> None:
    assert as_addresses(IPROUTE2) == {"52:54:00:12:34:68": [IPv4Address("10.77.0.10")]}


@pytest.mark.parametrize(
    "told",
    [
        "",
        "sh: ip: not found",
        "    inet 10.77.0.10/24",
        "2: eth0:\n    link/ether 52:54:00:12:34:68 brd\n    inet 999.7.0.1/24",
        "2: eth0:\n    link/ether 52:54:00:12:34:68\n    inet 10.77.0/24",
    ],
)
def test_what_is_no_answer_says_nothing(told: str) -> None:
    assert as_addresses(told) == {}
