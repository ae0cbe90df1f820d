"""What is shown while a guest boots: on a terminal words that come and go, in a pipe nothing."""

import re

import pexpect
import pytest

from tests.plugin.project import Project

TRANSIENT = re.compile(r"\x1b7 (kvmlab: [^\x1b]*)\x1b8\x1b\[K")

BOOTS = """
import pytest

def test_before(): ...

@pytest.mark.kvm(image="micro")
def test_boots(guest): ...
"""

BUILDS = """
def test_builds(request):
    session = request.config.pluginmanager.get_plugin("kvmlab-session")
    session.progress.building("unpacking", 0.25)
    session.progress.building("unpacking", 0.5)
    session.progress.building("done", None)
"""


@pytest.fixture(scope="module")
def on_a_terminal(module_project: Project) -> str:
    module_project.write("test_it.py", BOOTS)
    return in_a_terminal(module_project, "--kvm-lab", TERM="xterm")


def in_a_terminal(project: Project, *arguments: str, **changes: str) -> str:
    """Everything that a run writes to its terminal."""
    program, *words = project.command(*arguments)
    environment = project.full_environment(**changes)
    with pexpect.spawn(
        program,
        words,
        cwd=str(project.folder),
        env=environment,
        encoding="utf-8",
        timeout=120,
        dimensions=(40, 120),
    ) as terminal:
        terminal.expect(pexpect.EOF)
        return str(terminal.before)


def test_a_terminal_shows_what_the_guest_is_doing(on_a_terminal: str) -> None:
    assert [text for text in TRANSIENT.findall(on_a_terminal) if "probe" not in text] == [
        "kvmlab: guest: create …",
        "kvmlab: guest: ssh …",
        "kvmlab: guest: ready …",
    ]


def test_what_was_shown_is_gone_when_pytest_writes_again(on_a_terminal: str) -> None:
    rest = TRANSIENT.sub("", on_a_terminal)
    assert "\x1b7" not in rest
    assert re.search(r"test_it\.py (\x1b\[\d*m)*\.(\x1b\[\d*m)*\.", rest)


def test_a_terminal_that_cannot_erase_is_left_alone(project: Project) -> None:
    project.write("test_it.py", BUILDS)
    shown = in_a_terminal(project, "--kvm-lab", TERM="dumb", NO_COLOR="1")
    assert "\x1b" not in shown
    assert "kvmlab: unpacking\r\n" in shown


def test_a_pipe_gets_a_line_for_each_step_of_building(project: Project) -> None:
    project.write("test_it.py", BUILDS)
    result = project.pytest("--kvm-lab")
    assert [line for line in result.outlines if "unpacking" in line or "done" in line] == [
        "kvmlab: unpacking",
        "kvmlab: done",
    ]


def test_a_terminal_shows_how_far_building_is(project: Project) -> None:
    project.write("test_it.py", BUILDS)
    shown = TRANSIENT.findall(in_a_terminal(project, "--kvm-lab", TERM="xterm"))
    assert shown[-3:] == ["kvmlab: unpacking (25%)", "kvmlab: unpacking (50%)", "kvmlab: done"]
