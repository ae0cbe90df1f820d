"""How tests get clean guests, in whole runs of pytest: which way is taken, who is told, what ends how."""

import json

import pytest

from tests.plugin.project import Project, section_of

CONFTEST = """
import json, os, pytest
from pytest_kvmlab.errors import HostError

@pytest.fixture
def note(request):
    def note(guest):
        frozen = guest.machine.frozen
        facts = {
            "test": request.node.name,
            "worker": os.environ.get("PYTEST_XDIST_WORKER", "main"),
            "template": frozen and frozen.sha256,
            "boot": guest.succeed("cat /proc/sys/kernel/random/boot_id"),
            "uuid": guest.domain.UUIDString(),
        }
        with open("facts.jsonl", "a") as file:
            file.write(json.dumps(facts) + "\\n")
        guest.succeed("test ! -e /run/spoilt && touch /run/spoilt")
        if os.environ.get("STAYS") == request.node.name:
            stay(guest.machine)
    return note

def stay(machine):
    # The one thing that no real guest can be made to do.
    def power_off():
        end()
        raise HostError("libvirt does not answer")

    end, machine.power_off = machine.power_off, power_off
"""

SAME = """
import pytest
@pytest.mark.kvm(image="micro")
@pytest.mark.parametrize("number", range({count}))
def test_it(guest, note, number):
    note(guest)
"""

# Nobody could ask its clones whether they are any good.
ODD = """
import pytest
@pytest.mark.kvm(image="micro", login={"channel": "none"}, ready="console:micro: ready")
@pytest.mark.parametrize("number", range(2))
def test_odd(guest, number):
    assert guest.machine.frozen is None
"""

SHARED = """
import pytest
pytestmark = pytest.mark.kvm(image="micro")

def test_first(shared_guest):
    assert shared_guest.run("true").ok
    raise KeyboardInterrupt

def test_second(shared_guest): ...
"""


def facts_of(project: Project) -> list[dict[str, str]]:
    return [json.loads(line) for line in (project.folder / "facts.jsonl").read_text().splitlines()]


def test_tests_get_clones_and_what_is_none_says_why(project: Project) -> None:
    project.write("conftest.py", CONFTEST)
    project.write("test_same.py", SAME.format(count=3))
    project.write("test_odd.py", ODD)
    result = project.pytest("--kvm-lab", "--kvm-pool=1")
    result.assert_outcomes(passed=5)
    facts = facts_of(project)
    assert [len({fact[what] for fact in facts}) for what in ("template", "boot", "uuid")] == [1, 3, 3]
    assert facts[0]["template"]
    result.stdout.fnmatch_lines(["kvmlab: clean guests: clone is tried first,*, pool of 1), then rewind, *"])
    result.stdout.fnmatch_lines(
        ["*= kvmlab: clean guests =*", "3 x clone", "2 x no clone: nobody can ask it how it is"]
    )


def test_a_way_that_was_asked_for_is_taken_or_is_an_error(project: Project) -> None:
    project.write("test_odd.py", ODD)
    result = project.pytest("--kvm-lab", "--kvm-reset=clone")
    result.assert_outcomes(errors=2)
    told = section_of("\n".join(result.outlines), "test_odd[0]")
    assert "test_odd.py::test_odd[0]: --kvm-reset=clone: nobody can ask it how it is" in told
    assert "--kvm-reset=auto" in told


def test_workers_share_one_template(project: Project) -> None:
    project.write("conftest.py", CONFTEST)
    project.write("test_same.py", SAME.format(count=4))
    result = project.pytest("--kvm-lab", "-n2", "--kvm-reset=clone")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        ["kvmlab: clean guests: clone, as asked for (*)", "*= kvmlab: clean guests =*", "4 x clone"]
    )
    facts = facts_of(project)
    assert {fact["worker"] for fact in facts} == {"gw0", "gw1"}
    assert len({fact["template"] for fact in facts}) == 1
    assert len({fact["uuid"] for fact in facts}) == 4


@pytest.mark.parametrize("workers", [[], ["-n2"]])
def test_a_guest_that_does_not_end_fails_the_run_and_its_test_is_named(
    project: Project, workers: list[str]
) -> None:
    project.write("conftest.py", CONFTEST)
    project.write("test_same.py", SAME.format(count=3))
    result = project.pytest("--kvm-lab", *workers, STAYS="test_it[1]")
    result.assert_outcomes(passed=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*kvmlab: guests that did not end*", "test_same.py::test_it[[]1[]]: *libvirt does not answer*"]
    )


def test_a_run_that_is_interrupted_ends_its_shared_guest(project: Project) -> None:
    project.write("test_shared.py", SHARED)
    result = project.pytest("--kvm-lab")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])
    result.stdout.no_fnmatch_line("*RuntimeError*")
