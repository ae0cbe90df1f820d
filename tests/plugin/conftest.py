"""Projects to run pytest in. The store of images is this run's own, so that nothing is built again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_kvmlab.lab.run import open_store
from pytest_kvmlab.plugin.session import LabSession
from tests.plugin.project import Project, new_project


@pytest.fixture(scope="session")
def store(request: pytest.FixtureRequest) -> Path:
    session = request.config.pluginmanager.get_plugin("kvmlab-session")
    assert isinstance(session, LabSession)
    return open_store(session.options.store).root.absolute()


@pytest.fixture
def project(tmp_path: Path, store: Path) -> Iterator[Project]:
    with new_project(tmp_path, store) as project:
        yield project


@pytest.fixture(scope="module")
def module_project(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Project]:
    """One project for a module whose tests look at one run."""
    with new_project(tmp_path_factory.mktemp("project"), store) as project:
        yield project
