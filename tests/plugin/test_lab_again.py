"""A lab for the second test: its networks are whole again, and its guests start in their order."""

import pytest

from tests.plugin.project import Project

LAB = """
[network.back]
mode = "isolated"

[guest.web]
image = "micro"
networks = ["back"]
after = ["db"]
ready = "ping -c 1 -W 5 db"

[guest.db]
image = "micro"
networks = ["back"]
"""

SUITE = """
import pytest
from pytest_kvmlab import KvmlabError

def test_that_breaks_the_network(lab):
    with pytest.raises(KvmlabError, match="no line has rate None, loss 7, delay 0"):
        lab["web"].nics[0].impair(loss=7)
    lab.partition("web", "db")
    lab["web"].fail("ping -c 1 -W 2 db")

def test_that_wants_it_whole(lab):
    lab["web"].succeed("ping -c 1 -W 5 db")

def test_that_wants_all_anew(lab):
    lab.reset()
    lab["web"].succeed("ping -c 1 -W 5 db")
"""


@pytest.mark.timeout(300)
def test_a_lab_that_is_set_back_is_whole_and_keeps_its_order(project: Project) -> None:
    project.write("pair.lab.toml", LAB)
    project.write("test_it.py", SUITE)
    result = project.pytest("--kvm-lab", "--kvm-reset=rewind")
    result.assert_outcomes(passed=3)
