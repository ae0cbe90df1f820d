"""Several labs in one run, and one lab in several runs."""

from tests.guest.leftovers import network_of_this_machine
from tests.plugin.pair_lab import PAIR
from tests.plugin.project import Project, finished

APART = """
[network.one]
mode = "isolated"

[network.two]
mode = "isolated"

[guest.web]
image = "micro"
networks = ["one"]

[guest.db]
image = "micro"
networks = ["two"]
"""
ALONE = """
[network.one]
mode = "isolated"

[guest.{name}]
image = "micro"
networks = ["one"]
"""

TEST_APART = """
import pytest
from pytest_kvmlab import KvmlabError

def test_guests_without_a_network_in_common_cannot_be_parted(lab):
    with pytest.raises(KvmlabError, match="lab apart: web and db have no network in common"):
        lab.partition("web", "db")
    lab["web"].fail(f"ping -c 1 -W 2 {lab.networks['two'].addresses['db']}")
"""
TEST_NAMED = """
import pytest

def test_the_options_lab(lab):
    assert (lab.name, *lab) == ("common", "pc")

@pytest.mark.kvm(lab="../labs/other.lab.toml")
def test_the_marks_lab(lab):
    assert (lab.name, *lab) == ("other", "sql")
"""


def test_each_test_of_a_run_has_its_own_lab(project: Project) -> None:
    project.write("apart/apart.lab.toml", APART)
    project.write("apart/test_apart.py", TEST_APART)
    project.write("named/test_named.py", TEST_NAMED)
    project.write("labs/common.lab.toml", ALONE.format(name="pc"))
    project.write("labs/other.lab.toml", ALONE.format(name="sql"))
    result = project.pytest("--kvm-lab", "--kvm-host=private", "--kvm-lab-file=labs/common.lab.toml")
    result.assert_outcomes(passed=3)


TEST_AT_ONCE = """
import os, pathlib, time

BOOT = "cat /proc/sys/kernel/random/boot_id"
HERE = pathlib.Path(__file__).parent

def both_are_up():
    (HERE / f"up-{os.getpid()}").touch()
    until = time.monotonic() + 120
    while len(list(HERE.glob("up-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    return len(list(HERE.glob("up-*"))) == 2

def test_each_run_has_its_own_database(lab):
    assert lab.networks["campus"].addresses == {"web": "10.77.0.10", "db": "10.77.0.2"}
    lab["db"].succeed(f"mkdir /srv; {BOOT} >/srv/id; httpd -p 80 -h /srv")
    assert both_are_up()
    assert lab["web"].succeed("wget -qO- http://db/id") == lab["db"].succeed(BOOT)
    with lab["web"].connect(22) as line:
        assert line.recv(4) == b"SSH-"
"""


def test_two_runs_with_one_lab_file_at_once_do_not_notice_each_other(project: Project) -> None:
    before = network_of_this_machine()
    project.write("pair.lab.toml", PAIR)
    project.write("test_it.py", TEST_AT_ONCE)
    runs = [
        project.start("--kvm-lab", "--kvm-host=private", f"--kvm-artifacts=artifacts-{number}")
        for number in range(2)
    ]
    for result in [finished(run) for run in runs]:
        result.assert_outcomes(passed=1)
    assert network_of_this_machine() == before
