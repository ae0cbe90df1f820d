"""Labs: guests in networks of their own, the same lab in four workers at once, and what is refused."""

import pytest

from pytest_kvmlab.spec.run_record import read_runs
from tests.guest.leftovers import network_of_this_machine
from tests.plugin.pair_lab import MODES, PAIR
from tests.plugin.project import Project, junit_properties

SAME = """
import pathlib, time, pytest

BOOT = "cat /proc/sys/kernel/random/boot_id"
HERE = pathlib.Path(__file__).parent

def all_are_up(number):
    (HERE / f"up-{number}").touch()
    until = time.monotonic() + 120
    while len(list(HERE.glob("up-*"))) < 4 and time.monotonic() < until:
        time.sleep(0.1)
    return len(list(HERE.glob("up-*"))) == 4

@pytest.mark.parametrize("number", range(4))
def test_each_lab_has_its_own_database(lab, number):
    assert all_are_up(number)
    assert lab.networks["campus"].addresses["web"] == "10.77.0.10"
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


@pytest.fixture(scope="module")
def modes(pair: Project) -> pytest.RunResult:
    before = network_of_this_machine()
    result = pair.pytest("--kvm-lab", "--kvm-host=private", "--junit-xml=junit.xml", "test_modes.py")
    assert network_of_this_machine() == before
    return result


def test_guests_of_a_lab_reach_each_other_and_are_reached(modes: pytest.RunResult) -> None:
    modes.assert_outcomes(passed=9)


def test_nobody_takes_a_simulated_bridge_for_the_campus(pair: Project, modes: pytest.RunResult) -> None:
    modes.stdout.fnmatch_lines(["kvmlab: network lan: simulated: *stood for br0 and its LAN"])
    for test in read_runs(pair.folder / "kvmlab-artifacts")[0].tests:
        (web,) = (guest for guest in test.guests if guest.name == "web")
        bridges = {card.network: card.simulated_bridge for card in web.networks}
        assert bridges == {"campus": "", "back": "", "lan": "br0"}
    properties = junit_properties(pair.folder / "junit.xml")
    assert {each["kvmlab.web.simulated_bridges"] for each in properties.values()} == {"br0"}
    assert not [name for each in properties.values() for name in each if name.startswith("kvmlab.db.sim")]


def test_the_same_lab_four_times_at_once_and_the_machine_is_as_before(pair: Project) -> None:
    before = network_of_this_machine()
    pair.pytest("--kvm-lab", "--kvm-host=private", "-n4", "test_same.py").assert_outcomes(passed=4)
    assert network_of_this_machine() == before
    assert pair.processes() == []
    assert pair.run_folders() == []


def test_one_guest_of_a_lab(pair: Project) -> None:
    result = pair.pytest("--kvm-lab", "--kvm-host=private", "test_alone.py")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the mark says memory about one guest, but*the whole lab*"])


def test_a_test_that_wants_a_lab_where_none_is_described(project: Project) -> None:
    project.write("test_none.py", "def test_none(lab): pass")
    result = project.pytest("--kvm-lab", "test_none.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*there is no lab file at or above the test*"])
