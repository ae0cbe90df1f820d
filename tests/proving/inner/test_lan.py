"""A guest on the LAN of this host: the bridge br0, whose DHCP server is the host's."""

import subprocess
from ipaddress import IPv4Address, IPv4Network

from pytest_kvmlab import Lab


def ports() -> list[str]:
    """What is plugged into br0."""
    told = subprocess.run(["bridge", "link"], check=True, capture_output=True, text=True).stdout
    return [line for line in told.splitlines() if "master br0" in line]


def test_a_guest_is_a_neighbour_on_the_bridge_of_the_host(lab: Lab) -> None:
    server = lab["server"]
    server.wait_until_succeeds("ping -c 1 10.99.0.1")
    (address,) = server.succeed("ip -4 -o address show dev eth0 | awk '{print $4}' | cut -d/ -f1").split()
    assert IPv4Address(address) in IPv4Network("10.99.0.0/24")
    subprocess.run(["ping", "-c", "1", "-W", "10", address], check=True)
    assert len(ports()) == 1
