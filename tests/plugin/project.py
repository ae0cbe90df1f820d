"""A project of somebody's: a folder with tests, and pytest runs in it apart from this one."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

_SECONDS = 240.0


@dataclass
class Project:
    """A folder with tests.

    Attributes:
        folder: where the tests are.
        runs: where the runs have their folders; short, because paths of sockets are.
        environment: what is set for every run, besides this process's own environment.
    """

    folder: Path
    runs: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]

    def full_environment(self, **changes: str) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("KVMLAB", "PYTEST"))}
        return own | {"KVMLAB_RUNS": str(self.runs), "COLUMNS": "160"} | dict(self.environment) | changes

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.full_environment(**changes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def pytest(self, *arguments: str, **changes: str) -> pytest.RunResult:
        return finished(self.start(*arguments, **changes))

    def processes(self) -> list[str]:
        """Command lines of processes that have to do with the runs of this project."""
        return [line for line in command_lines() if str(self.runs) in line]

    def run_folders(self) -> list[str]:
        return sorted(path.name for path in self.runs.iterdir())


def finished(process: subprocess.Popen[str]) -> pytest.RunResult:
    """What a run of pytest said; shown by pytest where the test that looks at it fails."""
    started = time.monotonic()
    try:
        output, _ = process.communicate(timeout=_SECONDS)
    finally:
        process.kill()
        process.wait()
    print(output)  # noqa: T201  pytest captures it
    return pytest.RunResult(process.returncode, output.splitlines(), [], time.monotonic() - started)


@contextmanager
def new_project(folder: Path, store: Path) -> Iterator[Project]:
    """A project in an empty folder; at the end nothing of its runs may be left."""
    runs = Path(tempfile.mkdtemp(prefix="kvm-lab-", dir="/tmp"))
    project = Project(folder, runs, {"KVMLAB_STORE": str(store)})
    try:
        yield project
        assert project.run_folders() == []
        assert project.processes() == []
    finally:
        shutil.rmtree(runs, ignore_errors=True)


def command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue


def junit_properties(file: Path) -> dict[str, dict[str, str]]:
    """The properties of each test of a JUnit XML file, by the test's name."""
    cases = ET.parse(file).iter("testcase")  # noqa: S314  our own pytest wrote it
    return {
        case.attrib["name"]: {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
        for case in cases
    }


def section_of(output: str, test: str) -> str:
    """What pytest's report says about one failed test."""
    title = rf"^_+ (?:ERROR at \w+ of )?{re.escape(test)} _+$"
    found = re.search(rf"{title}\n(.*?)(?=^_+ .* _+$|^=+ .* =+$)", output, re.MULTILINE | re.DOTALL)
    assert found, f"no report of {test}"
    return found[1]
