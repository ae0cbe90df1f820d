"""Which guest a test means: the mark's image, a guest of a lab, or the lab's only one."""

from dataclasses import replace
from pathlib import Path

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.conflicts import refuse_conflicts
from pytest_kvmlab.spec.guest import GuestKeys, SomeKeys, given, merge
from pytest_kvmlab.spec.kernel import ITS_OWN, image_with, is_range
from pytest_kvmlab.spec.labfile import LabSpec
from pytest_kvmlab.spec.marker import KvmMark
from pytest_kvmlab.spec.names import nearest

DEFAULT_NAME = "guest"


def select_guest(mark: KvmMark, lab: LabSpec | None, *, where: str) -> tuple[str, GuestKeys]:
    """Decide which guest the fixture `guest` gives.

    Args:
        mark: what the test says.
        lab: the lab of the test, if it has one.
        where: the test, for messages.

    Returns:
        The guest's name, and what mark and lab file say about it together.

    Raises:
        ConfigError: there is neither an image nor a lab, the lab has several guests and none is named, or
            the mark's networks conflict with those of the lab.
    """
    if lab is None or (mark.guest is None and mark.lab is None and mark.image is not None):
        if mark.guest is not None:
            raise ConfigError(
                f"{where}: guest {mark.guest!r} is of no lab: there is no lab file at or above the test",
                'write a NAME.lab.toml, or name a lab: kvm(lab="wiki")',
            )
        return DEFAULT_NAME, mark
    name = mark.guest or _only(lab, where)
    if name not in lab.guests:
        raise ConfigError(
            f"{where}: {lab.path} has no guest {name!r}{nearest(name, lab.guests)}",
            f"its guests: {', '.join(lab.guests)}",
        )
    keys = merge(mark, lab.guests[name])
    refuse_conflicts({**lab.guests, name: keys}, lab.networks, lab.apps, source=where)
    return name, keys


def with_kernel(keys: SomeKeys, otherwise: str = ITS_OWN) -> SomeKeys:
    """Let the name of its image say which kernel a guest has, where that is one of Debian's.

    Args:
        keys: what is said about the guest.
        otherwise: the kernel that it has if nothing is said, or only which ones will do.

    Returns:
        The same keys, with `image` such as `debian-12+6.12`; a kernel that is a file stays where it is.

    Raises:
        ConfigError: the name would be too long.
    """
    kernel = otherwise if keys.kernel is None or is_range(keys.kernel) else keys.kernel
    if keys.image is None or (keys.kernel is None and kernel == ITS_OWN):
        return keys
    if isinstance(kernel, Path):
        return keys
    try:
        return keys.model_copy(update={"image": image_with(keys.image, kernel), "kernel": None})
    except ValueError as error:
        raise ConfigError(f"image {keys.image} with kernel {kernel}: {error}") from None


def with_kernels(lab: LabSpec, otherwise: str = ITS_OWN) -> LabSpec:
    """The same lab, each guest as `with_kernel` makes it."""
    return replace(lab, guests={name: with_kernel(keys, otherwise) for name, keys in lab.guests.items()})


def _only(lab: LabSpec, where: str) -> str:
    if len(lab.guests) > 1:
        raise ConfigError(
            f"{where}: {lab.path} has several guests: {', '.join(lab.guests)}",
            f"say which: kvm(guest={next(iter(lab.guests))!r})",
        )
    return next(iter(lab.guests))


def needs_lab(mark: KvmMark) -> bool:
    """Whether a test with this mark looks for a lab: it names one or a guest of one, or it names no image."""
    return mark.lab is not None or mark.guest is not None or mark.image is None


def refuse_guest_keys(mark: KvmMark, *, where: str) -> None:
    """See that the mark of a test that asks for a whole lab says nothing about one guest of it.

    What the test expects of kernels, and which of them it is for, is about every guest.

    Args:
        mark: what the test says.
        where: the test, for messages.

    Raises:
        ConfigError: it does, so that it is open which guest is meant.
    """
    about_all = {"expect_kernel", *(["kernel"] if is_range(mark.kernel) else [])}
    about_one = [key for key in given(mark) if key not in about_all]
    if keys := [*about_one, *(["guest"] if mark.guest else [])]:
        raise ConfigError(
            f"{where}: the mark says {', '.join(keys)} about one guest, but the test asks for the whole lab",
            "write it into the lab file, or ask for one guest: the fixture guest",
        )
