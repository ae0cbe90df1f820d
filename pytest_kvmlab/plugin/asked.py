"""What a test asks for: its marks and its lab, as one set of keys."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.shipped import shipped_labs
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.kernel import ITS_OWN, is_range
from pytest_kvmlab.spec.labfile import LabSpec, find_lab, load_lab, locate_lab
from pytest_kvmlab.spec.marker import KvmMark, WrittenMark, merge_marks
from pytest_kvmlab.spec.options import Options
from pytest_kvmlab.spec.selection import needs_lab, refuse_guest_keys, select_guest, with_kernel, with_kernels


def merged_mark(node: pytest.Item | pytest.Collector, extra: dict[str, object] | None = None) -> KvmMark:
    """All `kvm` marks of a test or module as one, the nearest winning.

    Args:
        node: the test or module.
        extra: keys that are nearer than any mark, such as those of a call of `make_guest`.

    Raises:
        ConfigError: a mark has an unknown key or a wrong value.
    """
    where, folder = node.nodeid, node.path.parent
    written = [WrittenMark(where, folder, mark.kwargs, mark.args) for mark in _nearest_first(node)]
    if extra:
        written.insert(0, WrittenMark(f"make_guest in {where}", folder, extra))
    return merge_marks(written)


def _nearest_first(node: pytest.Item | pytest.Collector) -> list[pytest.Mark]:
    """The `kvm` marks of a node.

    pytest itself lists those of a function before its parameters', and those of a base class before its own.
    """
    of_parameters = getattr(getattr(node, "callspec", None), "marks", ())
    marks: list[pytest.Mark] = []
    for each in node.iter_parents():
        marks += each.own_markers[::-1] if isinstance(each, pytest.Class) else each.own_markers
    return sorted((mark for mark in marks if mark.name == "kvm"), key=lambda mark: mark not in of_parameters)


@dataclass(frozen=True)
class AskedGuest:
    """A guest that a test asks for.

    Attributes:
        name: its name in its lab.
        keys: what marks and lab file say about it.
        lab: the lab that it is of, if it is of one.
        kernels: which kernels the test is for, if it says that.
        own_kernel: whether mark or lab file name its kernel.
    """

    name: str
    keys: GuestKeys
    lab: LabSpec | None
    kernels: str | None
    own_kernel: bool


@dataclass(frozen=True)
class AskedLab:
    """A lab that a test asks for.

    Attributes:
        lab: the lab, each guest's kernel decided.
        kernels: which kernels the test is for, if it says that.
    """

    lab: LabSpec
    kernels: str | None


def asked_guest(
    node: pytest.Item | pytest.Collector,
    options: Options,
    extra: dict[str, object] | None = None,
    *,
    kernel: str = ITS_OWN,
) -> AskedGuest:
    """Which guest a test asks for.

    Args:
        node: the test or module.
        options: how to run.
        extra: keys that are nearer than any mark.
        kernel: what the guest boots if nothing is said about that.

    Raises:
        ConfigError: marks or lab file are wrong, or leave open which guest is meant.
    """
    mark = merged_mark(node, extra)
    lab = lab_of(mark, node, options) if needs_lab(mark) else None
    name, keys = select_guest(mark, lab, where=node.nodeid)
    kernels = _range(keys)
    own = keys.kernel is not None and kernels is None
    return AskedGuest(name, with_kernel(keys, kernel), lab, kernels, own)


def _range(keys: GuestKeys) -> str | None:
    return str(keys.kernel) if is_range(keys.kernel) else None


def asked_lab(node: pytest.Item | pytest.Collector, options: Options, *, kernel: str = ITS_OWN) -> AskedLab:
    """Which lab a test asks for.

    Args:
        node: the test or module.
        options: how to run.
        kernel: what those of its guests boot about which nothing is said.

    Raises:
        ConfigError: marks or lab file are wrong, or there is no lab.
    """
    mark = merged_mark(node)
    refuse_guest_keys(mark, where=node.nodeid)
    lab = lab_of(mark, node, options)
    if lab is None:
        raise ConfigError(
            f"{node.nodeid}: there is no lab file at or above the test",
            'write a NAME.lab.toml, or name a lab: kvm(lab="wiki")',
        )
    return AskedLab(with_kernels(lab, kernel), _range(mark))


def lab_of(mark: KvmMark, node: pytest.Item | pytest.Collector, options: Options) -> LabSpec | None:
    """The lab of a test: its mark's, else the nearest file at or above it, else the option's.

    Args:
        mark: what the test says.
        node: the test or module.
        options: how to run.

    Raises:
        ConfigError: the lab's file is wrong, or there are several.
    """
    folder, wish = node.path.parent, options.lab_file
    if mark.lab is not None:
        return _load_once(locate_lab(mark.lab, shipped_labs(), folder))
    path = find_lab(folder, _named(wish, node.config) if wish is not None else None)
    return _load_once(path) if path else None


def named_lab(wish: str, config: pytest.Config) -> LabSpec:
    """The lab that the option names.

    Args:
        wish: a path, seen from where pytest was started, or the name of a shipped lab.
        config: pytest's.

    Raises:
        ConfigError: there is no such lab, or its file is wrong.
    """
    return _load_once(_named(wish, config))


def _named(wish: str, config: pytest.Config) -> Path:
    return locate_lab(wish, shipped_labs(), config.invocation_params.dir)


_load_once = cache(load_lab)
