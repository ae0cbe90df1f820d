"""The mark `kvm`: what a test says about its guest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.guest import GuestKeys, anchored
from pytest_kvmlab.spec.text import Line
from pytest_kvmlab.spec.validation import validate


class KvmMark(GuestKeys):
    """The keys of a mark: those of a guest, and which lab and which of its guests is meant."""

    lab: Line | None = None
    guest: Line | None = None


@dataclass(frozen=True)
class WrittenMark:
    """A mark as it stands in a test file.

    Args:
        where: its place, for messages: `tests/test_wiki.py::test_login`.
        folder: relative paths in it are seen from here.
        kwargs: its keyword arguments.
        args: its positional arguments.
    """

    where: str
    folder: Path
    kwargs: Mapping[str, object]
    args: Sequence[object] = ()


def merge_marks(marks: Sequence[WrittenMark]) -> KvmMark:
    """Make one of all the marks that apply to a test.

    Args:
        marks: the nearest first: parameter, function, class, module.

    Returns:
        Each key as the nearest mark that has it says it; without marks, a mark that says nothing.

    Raises:
        ConfigError: a mark has positional arguments, an unknown key or a wrong value.
    """
    merged: dict[str, object] = {}
    for mark in reversed([_read(mark) for mark in marks]):
        merged.update({name: getattr(mark, name) for name in mark.model_fields_set})
    return KvmMark.model_construct(_fields_set=set(merged), **merged)


def _read(mark: WrittenMark) -> KvmMark:
    source = f"mark 'kvm' of {mark.where}"
    if mark.args:
        raise ConfigError(f"{source}: takes keyword arguments only", f"name it: kvm(image={mark.args[0]!r})")
    return anchored(validate(KvmMark, mark.kwargs, source=source), mark.folder)
