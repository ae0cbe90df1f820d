"""What the fixtures give: in one run with four workers, beside another run of the same project."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.plugin.project import Project, finished

CONFTEST = """
import json, os, pytest

@pytest.fixture
def note(request, tmp_path_factory, kvm_host):
    def note(guest):
        facts = {
            "test": request.node.name,
            "worker": os.environ.get("PYTEST_XDIST_WORKER", "main"),
            "uri": kvm_host.uri,
            "domain": guest.domain.name(),
            "name": guest.name,
            "boot": guest.succeed("cat /proc/sys/kernel/random/boot_id"),
            "uuid": guest.domain.UUIDString(),
        }
        with open("facts.jsonl", "a") as file:
            file.write(json.dumps(facts) + "\\n")
    return note
"""

SHARED = """
import pytest
pytestmark = pytest.mark.kvm(image="micro")

def test_first(shared_guest, note):
    shared_guest.succeed("echo first > /tmp/mark")
    note(shared_guest)

def test_second(shared_guest, note):
    assert shared_guest.succeed("cat /tmp/mark") == "first\\n"
    note(shared_guest)
"""

MANY = """
import pytest

@pytest.mark.kvm(image="micro", memory="192MiB")
def test_two(make_guest, note):
    first, second = make_guest(), make_guest(memory="256MiB")
    note(first)
    note(second)
    assert first.spec.memory < second.spec.memory
"""

ALIAS = """
import pytest

@pytest.fixture
def guest():
    return "a visitor"

@pytest.mark.kvm(image="micro")
def test_alias(guest, kvm_guest, note):
    assert guest == "a visitor"
    note(kvm_guest)
"""

LAB = """
def test_lab(guest, kvm_guest, note):
    assert guest is kvm_guest
    note(guest)
"""

HOST = """
def test_host(kvm_host):
    assert kvm_host.kind == "private"
    assert kvm_host.uri.startswith("qemu+unix:///")
    assert kvm_host.accelerator in ("kvm", "tcg") and kvm_host.accelerator_why
    assert kvm_host.libvirt.count(".") == 2 and kvm_host.qemu.count(".") == 2
    assert kvm_host.timeout_scale >= 1
"""


@dataclass
class TwoRuns:
    workers: pytest.RunResult
    alone: pytest.RunResult
    facts: list[dict[str, str]]

    def of(self, *tests: str) -> list[dict[str, str]]:
        return [fact for fact in self.facts if fact["test"] in tests]


@pytest.fixture(scope="module")
def two_runs(module_project: Project) -> TwoRuns:
    project = module_project
    project.write("conftest.py", CONFTEST)
    for name, text in {"shared": SHARED, "many": MANY, "alias": ALIAS, "host": HOST}.items():
        project.write(f"test_{name}.py", text)
    project.write("lab/one.lab.toml", '[guest.web]\nimage = "micro"\n')
    project.write("lab/test_lab.py", LAB)
    arguments = ["--kvm-lab", "--kvm-host=private"]
    alone = project.start(*arguments, "--kvm-artifacts=alone", "lab")
    workers = project.pytest(*arguments, "-n4", "--dist=loadfile", "--ignore=lab")
    return TwoRuns(workers, finished(alone), read_facts(project.folder / "facts.jsonl"))


def read_facts(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_four_workers_and_another_run_beside_them_all_pass(two_runs: TwoRuns) -> None:
    two_runs.workers.assert_outcomes(passed=5)
    two_runs.alone.assert_outcomes(passed=1)


def test_the_tests_of_a_module_share_one_boot_of_the_shared_guest(two_runs: TwoRuns) -> None:
    first, second = two_runs.of("test_first", "test_second")
    assert first["boot"] == second["boot"]


def test_make_guest_starts_another_guest_each_time_and_names_it(two_runs: TwoRuns) -> None:
    first, second = two_runs.of("test_two")
    assert first["boot"] != second["boot"]
    assert (first["name"], second["name"]) == ("guest", "guest-2")


def test_a_guest_of_a_lab_has_its_name(two_runs: TwoRuns) -> None:
    assert [fact["name"] for fact in two_runs.of("test_lab")] == ["web"]


def test_no_two_guests_share_a_name(two_runs: TwoRuns) -> None:
    guests = {fact["boot"]: (fact["domain"], fact["uuid"]) for fact in two_runs.facts}
    assert len(guests) == 5
    assert len({domain for domain, _ in guests.values()}) == len({uuid for _, uuid in guests.values()}) == 5


def test_the_workers_of_a_run_share_one_host_and_two_runs_do_not(two_runs: TwoRuns) -> None:
    hosts = {fact["uri"] for fact in two_runs.facts if fact["worker"] != "main"}
    assert len(hosts) == 1
    assert hosts.isdisjoint(fact["uri"] for fact in two_runs.of("test_lab"))


def test_a_pipe_shows_no_passing_messages(two_runs: TwoRuns) -> None:
    two_runs.alone.stdout.no_fnmatch_line("*\x1b*")
    two_runs.alone.stdout.no_fnmatch_line("*kvmlab: web*")
