"""Labs: guests in networks of their own, the same lab in four workers at once, and what is refused."""

import pytest

from tests.guest.leftovers import network_of_this_machine
from tests.plugin.pair_lab import MODES, PAIR
from tests.plugin.project import Project

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


def test_guests_of_a_lab_reach_each_other_and_are_reached(pair: Project) -> None:
    before = network_of_this_machine()
    result = pair.pytest("--kvm-lab", "--kvm-host=private", "test_modes.py")
    result.assert_outcomes(passed=9)
    assert network_of_this_machine() == before


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
