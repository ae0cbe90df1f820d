"""Without `--kvm-lab`: whoever needs a guest is skipped, and nobody else notices the plugin."""

import pytest

from tests.plugin.project import Project

OURS = """
import pytest

@pytest.fixture
def app(guest):
    return guest

@pytest.fixture(scope="module")
def shared_app(shared_guest):
    return shared_guest

class TestOurs:
    def test_direct(self, guest): ...
    def test_alias(self, kvm_guest): ...
    def test_shared(self, shared_guest): ...
    def test_factory(self, make_guest): ...
    def test_host(self, kvm_host): ...
    def test_through_a_fixture(self, app): ...
    def test_through_a_shared_fixture(self, shared_app): ...
    @pytest.mark.usefixtures("guest")
    def test_by_name(self): ...
    def test_at_run_time(self, request):
        request.getfixturevalue("guest")
        pytest.fail("there is no guest")

def test_without_a_guest(): ...
"""

THEIRS = """
import pytest

@pytest.fixture
def guest():
    return "a visitor"

@pytest.fixture
def table(guest):
    return guest

@pytest.mark.kvm(7, "switch", cables=4)
def test_own_guest(guest):
    assert guest == "a visitor"

@pytest.mark.kvm("keyboard, video, mouse")
def test_through_a_fixture(table):
    assert table == "a visitor"

@pytest.mark.kvm
def test_own_mark(): ...
"""


def test_a_test_that_needs_a_guest_is_skipped_with_the_reason(project: Project) -> None:
    project.write("test_ours.py", OURS)
    result = project.pytest("-rs", "--strict-markers")
    result.assert_outcomes(skipped=9, passed=1)
    result.stdout.fnmatch_lines(["*needs a KVM guest: run pytest with --kvm-lab*"])


@pytest.mark.parametrize("switch", [[], ["--kvm-lab"]], ids=["off", "on"])
def test_a_projects_own_guest_and_mark_are_left_alone(project: Project, switch: list[str]) -> None:
    project.write("test_theirs.py", THEIRS)
    project.pytest("--strict-markers", *switch).assert_outcomes(passed=3)


def test_a_projects_own_guest_can_be_made_of_ours(project: Project) -> None:
    project.write("conftest.py", "import pytest\n@pytest.fixture\ndef guest(guest): return guest\n")
    project.write("test_it.py", "def test_it(guest): ...\n")
    project.pytest().assert_outcomes(skipped=1)


def test_the_environment_switches_on(project: Project) -> None:
    project.write("test_it.py", "import pytest\n@pytest.mark.kvm(image='no')\ndef test_it(guest): ...\n")
    project.pytest(KVMLAB="0").assert_outcomes(skipped=1)
    project.pytest(KVMLAB="1").assert_outcomes(errors=1)


def test_collecting_starts_nothing(project: Project) -> None:
    project.write("test_ours.py", OURS)
    result = project.pytest("--kvm-lab", "--collect-only", PATH="/nonexistent")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*kvmlab:*")
