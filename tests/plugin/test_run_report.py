"""The page about a run, made by a run."""

import html
from pathlib import Path

import pytest

from tests.plugin.project import Project

TESTS = """
import pytest
pytestmark = pytest.mark.kvm(image="micro")

def test_complaint(guest):
    guest.succeed("echo '<script>planted</script>' > $(ls -d /sys/fs/ext4/vd*)/trigger_fs_error")

def test_good(guest):
    guest.succeed("true")
"""


def test_a_run_makes_its_page(project: Project) -> None:
    project.write("test_it.py", TESTS)
    result = project.pytest("--kvm-lab", "-n2", "--kvm-report=pages/report.html")
    page = (project.folder / "pages" / "report.html").read_text()
    assert f"page about this run: {project.folder}/pages/report.html" in str(result.stdout)
    assert "1 of 2 tests failed" in page
    assert "comm sh: &lt;script&gt;planted&lt;/script&gt;</mark>" in page
    assert "<img src=" in page


def test_missing_libraries_are_told_before_anything_runs(project: Project, tmp_path: Path) -> None:
    project.write("missing/jinja2.py", "raise ModuleNotFoundError('No module named jinja2', name='jinja2')")
    missing = str(tmp_path / "missing")
    result = project.pytest("--kvm-lab", "--kvm-report=report.html", "-p", "no:html", PYTHONPATH=missing)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "pip install 'pytest-kvmlab[report]'" in str(result.stdout)


def test_users_of_pytest_html_get_the_same_and_the_screen(project: Project) -> None:
    project.write("test_it.py", TESTS)
    project.pytest("--kvm-lab", "--html=theirs.html", "--self-contained-html")
    page = html.unescape((project.folder / "theirs.html").read_text())
    assert "kvmlab: kernel" in page
    assert "screen of guest" in page
    assert "data:image/png;base64," in page
