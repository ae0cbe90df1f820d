"""What is done to a bridge of the host's, so that it stays as it is."""

import re

from pytest_kvmlab.keeper.real_bridge import making


def test_a_port_changes_neither_the_address_nor_the_mtu_of_the_bridge() -> None:
    make, plug = making("kpx", "kvx", "/proc/self/fd/7", "br0", 9000)
    assert re.fullmatch(
        r"link add name kpx address fe(:[0-9a-f]{2}){5} mtu 9000 type veth "
        r"peer name kvx mtu 9000 netns /proc/self/fd/7",
        make,
    )
    assert plug == "link set dev kpx addrgenmode none master br0 up"
