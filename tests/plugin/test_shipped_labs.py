"""The shipped labs as somebody's suite uses them, as far as that needs no guest."""

import pytest

from pytest_kvmlab.lab.shipped import shipped_labs
from pytest_kvmlab.spec.labfile import load_lab
from tests.plugin.project import Project

FIXTURES = {
    "wiki": "wiki",
    "files": "file_server",
    "licence": "licence_server",
    "service": "measurement",
}

every_lab = pytest.mark.parametrize(("lab", "fixture"), FIXTURES.items())


@every_lab
def test_a_lab_that_ships_can_be_read_and_has_an_application(lab: str, fixture: str) -> None:
    spec = load_lab(shipped_labs() / lab / f"{lab}.lab.toml")
    assert spec.apps, fixture


@every_lab
def test_its_fixture_is_one_of_the_suites_and_the_lab_is_found_by_its_name(
    project: Project, lab: str, fixture: str
) -> None:
    project.write("conftest.py", f'pytest_plugins = ["pytest_kvmlab.fixtures.{lab}"]\n')
    project.write(
        "test_ours.py", f'import pytest\n@pytest.mark.kvm(lab="{lab}")\ndef test_ours({fixture}): ...\n'
    )
    listed = project.pytest("--fixtures", "test_ours.py")
    listed.stdout.fnmatch_lines([f"*fixtures defined from pytest_kvmlab.fixtures.{lab} *", f"{fixture} *"])
    collected = project.pytest("--kvm-lab", "--collect-only", "-q")
    assert collected.ret == pytest.ExitCode.OK
    collected.stdout.fnmatch_lines(["test_ours.py::test_ours"])


@every_lab
def test_without_the_option_a_test_that_uses_it_is_skipped(project: Project, lab: str, fixture: str) -> None:
    project.write("conftest.py", f'pytest_plugins = ["pytest_kvmlab.fixtures.{lab}"]\n')
    project.write("test_ours.py", f"def test_ours({fixture}): assert False\n")
    result = project.pytest("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*needs a KVM guest: run pytest with --kvm-lab*"])


def test_where_no_lab_is_named_the_error_says_how(project: Project) -> None:
    project.write("conftest.py", 'pytest_plugins = ["pytest_kvmlab.fixtures.wiki"]\n')
    project.write("test_ours.py", "def test_ours(wiki): assert False\n")
    result = project.pytest("--kvm-lab")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*there is no lab file at or above the test*", '*kvm(lab="wiki")*'])


def test_a_lab_without_the_guests_that_a_fixture_needs_is_refused_by_their_names(project: Project) -> None:
    project.write("ours.lab.toml", '[guest.only]\nimage = "micro"\n')
    project.write("conftest.py", 'pytest_plugins = ["pytest_kvmlab.fixtures.service"]\n')
    project.write("test_ours.py", "def test_ours(measurement): assert False\n")
    result = project.pytest("--kvm-lab")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*lab ours has no guest 'host'*", "*its guests: only*"])
