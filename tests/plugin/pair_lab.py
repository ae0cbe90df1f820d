"""A lab of two guests in networks of three modes, and tests that hold wherever it can be had."""

PAIR = """
[network.campus]
mode = "nat"
subnet = "10.77.0.0/24"

[network.back]
mode = "isolated"

[network.lan]
mode = "bridge"
bridge = "br0"
simulated = true
subnet = "192.168.7.0/28"

[guest.web]
image = "micro"
networks = [{ name = "campus", address = "10.77.0.10", mac = "52:54:00:12:34:68" }, "back", "lan"]
after = ["db"]

[guest.db]
image = "micro"
networks = ["back", "campus"]

[app.page]
guest = "web"
port = 8080
path = "/site/"
"""

MODES = """
import ipaddress, socket, urllib.request, pytest
from pytest_kvmlab import KvmlabError

def test_addresses_are_known_and_taken(shared_lab):
    assert list(shared_lab) == ["web", "db"] and shared_lab.name == "pair"
    for network in shared_lab.networks.values():
        for guest, address in network.addresses.items():
            assert ipaddress.ip_address(address) in ipaddress.ip_network(network.subnet)
            shared_lab[guest].wait_until_succeeds(f"ip address | grep -F 'inet {address}/'")
    assert shared_lab.networks["campus"].addresses == {"web": "10.77.0.10", "db": "10.77.0.2"}

def test_guests_find_each_other_by_name_whichever_network_they_ask_in(shared_lab):
    shared_lab["web"].succeed("ping -c 1 -W 5 db")

def test_the_test_reaches_each_guest_and_application(shared_lab):
    with shared_lab["db"].connect(22) as line:
        assert line.recv(4) == b"SSH-"
    shared_lab["web"].succeed("mkdir -p /srv/site; echo open >/srv/site/index.html; httpd -p 8080 -h /srv")
    with urllib.request.urlopen(shared_lab.url("page")) as page:
        assert page.read() == b"open\\n"

def test_a_network_without_an_uplink_leads_nowhere(shared_lab):
    shared_lab["web"].fail("ping -c 1 -W 2 192.0.2.1")

def test_parted_guests_do_not_hear_each_other_until_they_are_healed(shared_lab):
    shared_lab.partition("web", "db")
    shared_lab["web"].fail("ping -c 1 -W 2 db")
    shared_lab["db"].succeed("true")
    shared_lab.heal()
    shared_lab["web"].succeed("ping -c 1 -W 5 db")

def test_a_cable_is_pulled_and_put_back(shared_lab):
    nic = shared_lab["web"].nics[1]
    assert (nic.network, nic.address) == ("back", shared_lab.networks["back"].addresses["web"])
    nic.unplug()
    shared_lab["web"].wait_until_succeeds("grep 0 /sys/class/net/eth1/carrier")
    nic.plug()
    shared_lab["web"].wait_until_succeeds("grep 1 /sys/class/net/eth1/carrier")

def test_a_line_that_loses_everything_and_is_good_again(shared_lab):
    back = shared_lab["web"].nics[1]
    target = shared_lab.networks["back"].addresses["db"]
    back.impair(loss=1.0)
    shared_lab["web"].fail(f"ping -c 1 -W 2 {target}")
    back.impair()
    shared_lab["web"].succeed(f"ping -c 1 -W 5 {target}")

def test_a_guest_that_is_not_there_cannot_be_parted(shared_lab):
    with pytest.raises(KvmlabError, match="no guest 'dbb'"):
        shared_lab.partition("web", "dbb")

def test_a_guest_keeps_its_addresses_when_it_reboots(shared_lab):
    shared_lab["db"].reboot()
    shared_lab["web"].succeed("ping -c 1 -W 5 db")
"""
