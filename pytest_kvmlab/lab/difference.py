"""What is different between two images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pytest_kvmlab.spec.manifest import Manifest

T = TypeVar("T")


@dataclass(frozen=True)
class Difference:
    """How one image differs from another; empty where it does not.

    Attributes:
        removed: the packages that only the first has, and their versions.
        added: the packages that only the second has, and their versions.
        changed: the packages of which they have different versions: the first's and the second's.
        kernel: the kernel versions of the first and the second, if they differ.
        files: the sizes in bytes that a file has in the first and the second, if its content differs; None
            where it is missing.
        guest: what the first and the second say about their guests, by key, if they differ.
    """

    removed: Mapping[str, str]
    added: Mapping[str, str]
    changed: Mapping[str, tuple[str, str]]
    kernel: tuple[str | None, str | None] | None
    files: Mapping[str, tuple[int | None, int | None]]
    guest: Mapping[str, tuple[object, object]]

    def __bool__(self) -> bool:
        return any((self.removed, self.added, self.changed, self.kernel, self.files, self.guest))


def difference(first: Manifest, second: Manifest) -> Difference:
    """Compare two images by what they say about themselves.

    Args:
        first: one image.
        second: another.

    Returns:
        What differs.
    """
    before, after = first.packages, second.packages
    kernels = first.kernel_version, second.kernel_version
    return Difference(
        removed={name: before[name] for name in sorted(before.keys() - after.keys())},
        added={name: after[name] for name in sorted(after.keys() - before.keys())},
        changed={name: (old, new) for name, (old, new) in _changes(before, after).items() if old and new},
        kernel=kernels if kernels[0] != kernels[1] else None,
        files={
            name: (old.size if old else None, new.size if new else None)
            for name, (old, new) in _changes(first.files, second.files).items()
        },
        guest=_changes(first.guest, second.guest),
    )


def _changes(before: Mapping[str, T], after: Mapping[str, T]) -> dict[str, tuple[T | None, T | None]]:
    pairs = {name: (before.get(name), after.get(name)) for name in sorted(before.keys() | after.keys())}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
