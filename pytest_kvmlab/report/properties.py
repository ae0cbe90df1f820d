"""What JUnit XML says about the guest of a test."""

from collections.abc import Iterator

from pytest_kvmlab.lab.guest import Guest


def guest_properties(guest: Guest, accelerator: str, *, replaced: bool) -> Iterator[tuple[str, str]]:
    """Names and values of a guest's properties.

    Args:
        guest: a guest that was switched on.
        accelerator: `kvm` or `tcg`.
        replaced: a file is used in place of its image's disk, so that there is no digest, but a path.

    Yields:
        `kvmlab.GUEST.image`, `.image_sha256` or `.image_file`, `.kernel`, `.simulated_bridges` if it is on
        any, `.PHASE_seconds` of each phase; `kvmlab.accelerator`.
    """
    prefix = f"kvmlab.{guest.name}"
    yield f"{prefix}.image", guest.spec.image
    yield f"{prefix}.{'image_file' if replaced else 'image_sha256'}", guest.image_identity
    yield f"{prefix}.kernel", guest.kernel
    if simulated := [nic.simulated_bridge for nic in guest.nics if nic.simulated_bridge]:
        yield f"{prefix}.simulated_bridges", ", ".join(simulated)
    for phase, seconds in guest.timings().items():
        yield f"{prefix}.{phase}_seconds", f"{seconds:.3f}"
    yield "kvmlab.accelerator", accelerator
