"""What fixtures give, besides guests."""

from dataclasses import dataclass
from typing import Protocol

from pytest_kvmlab.lab.guest import Guest


@dataclass(frozen=True)
class HostFacts:
    """Where the guests of this run are.

    Attributes:
        uri: the libvirt URI.
        kind: `private`, `embed`, or the URI that was asked for.
        accelerator: `kvm` or `tcg`.
        accelerator_why: why this one.
        timeout_scale: what every timeout is multiplied by.
        libvirt: version of libvirt.
        qemu: version of QEMU.
    """

    uri: str
    kind: str
    accelerator: str
    accelerator_why: str
    timeout_scale: float
    libvirt: str
    qemu: str


class MakeGuest(Protocol):
    """What the fixture `make_guest` gives."""

    def __call__(self, **keys: object) -> Guest:
        """Start one more guest.

        Args:
            keys: as in the mark `kvm`, such as `image="micro"`; what is not given is the test's mark's.

        Returns:
            The guest, ready; it ends with the test.
        """
