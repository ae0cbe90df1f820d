"""Labs: guests in networks of their own, the same lab in four workers at once, and what is refused."""

from pathlib import Path

import pytest

from tests.plugin.project import Project

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

def test_guests_without_a_network_in_common_cannot_be_parted(shared_lab):
    with pytest.raises(KvmlabError, match="no guest 'dbb'"):
        shared_lab.partition("web", "dbb")

def test_a_guest_keeps_its_addresses_when_it_reboots(shared_lab):
    shared_lab["db"].reboot()
    shared_lab["web"].succeed("ping -c 1 -W 5 db")
"""

SAME = """
import pytest

BOOT = "cat /proc/sys/kernel/random/boot_id"

@pytest.mark.parametrize("number", range(4))
def test_each_lab_has_its_own_database(lab, number):
    lab["db"].succeed(f"mkdir /srv; {BOOT} >/srv/id; httpd -p 80 -h /srv")
    assert lab["web"].succeed("wget -qO- http://db/id") == lab["db"].succeed(BOOT)
"""

ALONE = """
import pytest

@pytest.mark.kvm(guest="web")
def test_one_guest_of_a_lab_has_its_networks(guest):
    assert guest.name == "web"
    guest.succeed("ip address | grep -F 10.77.0.10/")

@pytest.mark.kvm(memory="512MiB")
def test_a_mark_about_one_guest_is_refused(lab):
    assert False
"""


@pytest.fixture(scope="module")
def pair(module_project: Project) -> Project:
    module_project.write("pair.lab.toml", PAIR)
    for name, text in {"modes": MODES, "same": SAME, "alone": ALONE}.items():
        module_project.write(f"test_{name}.py", text)
    return module_project


def network_of_this_machine() -> list[Path]:
    return sorted(Path("/sys/class/net").iterdir())


def test_guests_of_a_lab_reach_each_other_and_are_reached(pair: Project) -> None:
    before = network_of_this_machine()
    result = pair.pytest("--kvm-lab", "--kvm-host=private", "test_modes.py")
    result.assert_outcomes(passed=9)
    assert network_of_this_machine() == before


def test_the_same_lab_four_times_at_once(pair: Project) -> None:
    pair.pytest("--kvm-lab", "--kvm-host=private", "-n4", "test_same.py").assert_outcomes(passed=4)


def test_one_guest_of_a_lab(pair: Project) -> None:
    result = pair.pytest("--kvm-lab", "--kvm-host=private", "test_alone.py")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the mark says memory about one guest, but*the whole lab*"])


def test_a_test_that_wants_a_lab_where_none_is_described(project: Project) -> None:
    project.write("test_none.py", "def test_none(lab): pass")
    result = project.pytest("--kvm-lab", "test_none.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*there is no lab file at or above the test*"])
