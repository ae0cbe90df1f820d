"""What tests of kernels share, with each other and with those of the plugin and of the proving ground."""

import pytest

from pytest_kvmlab.lab.kernels import kernels_at_hand
from pytest_kvmlab.lab.run import open_store
from pytest_kvmlab.plugin.session import LabSession
from pytest_kvmlab.spec.kernel import flavour_of
from tests.plugin.conftest import module_project, project, store
from tests.proving.conftest import session

__all__ = ["module_project", "project", "session", "store"]


@pytest.fixture
def older(session: LabSession) -> str:
    """A kernel of the series that the image is of, but the newest of which it has."""
    found = kernels_at_hand("bookworm", open_store(session.options.store))
    return [each for each in found if each.startswith("6.1.0-") and flavour_of(each, "amd64") == "amd64"][-2]
