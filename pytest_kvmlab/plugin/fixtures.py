"""The fixtures. Each is a few words about scope; the work is the session's."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_kvmlab.lab.guest import Guest
    from pytest_kvmlab.lab.lab import Lab
    from pytest_kvmlab.plugin.facts import HostFacts, MakeGuest
    from pytest_kvmlab.plugin.session import LabSession


def _session(request: pytest.FixtureRequest) -> "LabSession":
    """The session, for fixtures that a test asks for at run time, too."""
    session: LabSession | None = request.config.pluginmanager.get_plugin("kvmlab-session")
    if session is None:
        pytest.skip("needs a KVM guest: run pytest with --kvm-lab")
    return session


@pytest.fixture(scope="session")
def kvm_kernel(request: pytest.FixtureRequest) -> str:
    """The kernel that the test runs under: one of --kvm-kernel as it was written, else `image`."""
    return str(getattr(request, "param", "image"))


@pytest.fixture
def kvm_guest(request: pytest.FixtureRequest, kvm_kernel: str) -> "Iterator[Guest]":
    """The same as `guest`, for projects that have a fixture of that name already."""
    with _session(request).guest(request, kvm_kernel) as guest:
        yield guest


@pytest.fixture
def guest(kvm_guest: "Guest") -> "Guest":
    """One clean guest, ready: from the mark's image, or of the lab."""
    return kvm_guest


@pytest.fixture(scope="module")
def shared_guest(request: pytest.FixtureRequest, kvm_kernel: str) -> "Iterator[Guest]":
    """One guest for all tests of a module, not reset between them; the module's mark describes it."""
    with _session(request).guest(request, kvm_kernel) as guest:
        yield guest


@pytest.fixture
def kvm_lab(request: pytest.FixtureRequest, kvm_kernel: str) -> "Iterator[Lab]":
    """The same as `lab`, for projects that have a fixture of that name already."""
    with _session(request).lab(request, kvm_kernel) as lab:
        yield lab


@pytest.fixture
def lab(kvm_lab: "Lab") -> "Lab":
    """Every guest of the lab, clean and ready: `lab["web"]`, `lab.networks["campus"]`."""
    return kvm_lab


@pytest.fixture(scope="module")
def shared_lab(request: pytest.FixtureRequest, kvm_kernel: str) -> "Iterator[Lab]":
    """One lab for all tests of a module, not reset between them; the module's mark names it."""
    with _session(request).lab(request, kvm_kernel) as lab:
        yield lab


@pytest.fixture
def make_guest(request: pytest.FixtureRequest, kvm_kernel: str) -> "Iterator[MakeGuest]":
    """Starts guests as often as wanted: `make_guest(image="micro")`."""
    with _session(request).guest_factory(request, kvm_kernel) as make:
        yield make


@pytest.fixture(scope="session")
def kvm_host(request: pytest.FixtureRequest) -> "HostFacts":
    """Facts about where guests run: URI, accelerator and why, versions."""
    return _session(request).facts()
