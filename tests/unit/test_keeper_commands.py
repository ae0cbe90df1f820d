"""`kvmlab ps` and `kvmlab reap`, on runs without guests."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pytest_kvmlab.cli import app
from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.keeper.client import Keeper, end_run
from pytest_kvmlab.keeper.run_folder import RunFolder, create_run_folder
from pytest_kvmlab.lab.waits import until


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kvl-", dir="/tmp") as folder:
        monkeypatch.setenv("KVMLAB_RUNS", folder)
        yield Path(folder)


@pytest.fixture
def dead() -> RunFolder:
    folder, lock = create_run_folder({"host": "private", "command": ["pytest", "-x"], "started": time.time()})
    os.close(lock)
    return folder


@pytest.fixture
def kept() -> Iterator[RunFolder]:
    """A run without guests that its keeper keeps."""
    keeper = Keeper({"host": "embed"}, capabilities=None)
    keeper.keep(7200)
    assert until(lambda: keeper.folder.read("kept.json") or None, Deadline(30))
    yield keeper.folder
    end_run(keeper.folder)


def kvmlab(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_no_runs_are_listed_as_such() -> None:
    assert kvmlab("ps") == "no runs\n"
    assert json.loads(kvmlab("ps", "--json")) == []


def test_a_run_is_listed_with_its_state(dead: RunFolder, kept: RunFolder) -> None:
    lines = {line.split()[0]: line for line in kvmlab("ps").splitlines()}
    assert "dead" in lines[dead.run]
    assert "pytest -x" in lines[dead.run]
    assert "kept, 2.0 h left" in lines[kept.run]


def test_a_run_whose_record_is_half_written_is_listed_and_reaped(dead: RunFolder) -> None:
    (dead.path / "run.json").write_text('{"host": "priv')
    (listed,) = json.loads(kvmlab("ps", "--json"))
    assert (listed["run"], listed["host"], listed["alive"]) == (dead.run, None, False)
    assert kvmlab("reap") == f"{dead.run}: taken away\n"
    assert not dead.path.exists()


def test_reaping_spares_what_is_kept_unless_told_otherwise(kept: RunFolder) -> None:
    assert kvmlab("reap") == ""
    assert kept.path.exists()
    assert kvmlab("reap", "--kept") == f"{kept.run}: ended, it was kept\n"
    assert not kept.path.exists()


def test_a_run_that_cannot_be_taken_away_is_told(dead: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_kvmlab.keeper.reap._end", lambda *_: False)
    result = CliRunner().invoke(app, ["reap"])
    assert result.exit_code == 1
    assert f"{dead.run}: still there" in result.output
