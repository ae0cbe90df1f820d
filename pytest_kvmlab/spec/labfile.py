"""Lab files: guests, networks and applications that belong together, described in `NAME.lab.toml`."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic.config import JsonDict

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.application import AppName, GuestName, LabApp
from pytest_kvmlab.spec.conflicts import Conflict, find_conflicts, told
from pytest_kvmlab.spec.guest import GuestKeys, Keys, NetworkName, anchored
from pytest_kvmlab.spec.kernel import is_range
from pytest_kvmlab.spec.names import nearest
from pytest_kvmlab.spec.network import LabNetwork
from pytest_kvmlab.spec.validation import validate

SUFFIX = ".lab.toml"

_LARGEST_FILE = 2**20
# What pydantic does not say by itself of tables whose keys are names.
_NO_OTHERS: JsonDict = {"additionalProperties": False}
_SOME: JsonDict = {"minProperties": 1}


def _not_empty(guests: dict[str, "LabGuest"]) -> dict[str, "LabGuest"]:
    if not guests:
        raise ValueError("a lab has at least one guest: [guest.web]")
    return guests


class LabGuest(GuestKeys):
    """A guest of a lab: its keys, and the guests that are started before it."""

    after: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_one_kernel(self) -> Self:
        if is_range(self.kernel):
            raise ValueError("kernel is a range of versions, which is for the mark of a test: name one here")
        return self


class _LabFile(Keys):
    """What a lab file may say."""

    guest: Annotated[
        dict[GuestName, LabGuest], AfterValidator(_not_empty), Field(json_schema_extra=_SOME | _NO_OTHERS)
    ]
    network: Annotated[Mapping[NetworkName, LabNetwork], Field(json_schema_extra=_NO_OTHERS)] = {}
    app: Annotated[Mapping[AppName, LabApp], Field(json_schema_extra=_NO_OTHERS)] = {}


@dataclass(frozen=True)
class LabSpec:
    """A lab as its file describes it: every path in it is absolute if the file's was."""

    name: str
    path: Path
    guests: Mapping[str, LabGuest]
    networks: Mapping[str, LabNetwork]
    apps: Mapping[str, LabApp]


def load_lab(path: Path) -> LabSpec:
    """Read a lab file.

    Args:
        path: the file.

    Returns:
        The lab; the defaults of its guests are not filled in yet, because their images have a say.

    Raises:
        ConfigError: the file cannot be read, is no TOML, says something unknown or wrong, starts guests in a
            circle, or has conflicts (see `pytest_kvmlab.spec.conflicts`), all of which are told.
    """
    parsed = validate(_LabFile, _parse(path), source=str(path))
    guests = {name: anchored(guest, path.parent) for name, guest in parsed.guest.items()}
    lab = LabSpec(path.name.removesuffix(SUFFIX), path, guests, parsed.network, parsed.app)
    conflicts = [*_order_conflicts(lab), *find_conflicts(lab.guests, lab.networks, lab.apps)]
    if conflicts:
        raise told(conflicts, source=str(path))
    return lab


def find_lab(start: Path, otherwise: Path | None = None) -> Path | None:
    """Find the lab of a folder.

    Args:
        start: a folder, or a file in it.
        otherwise: the lab of folders that do not say which is theirs.

    Returns:
        The nearest `*.lab.toml` in this folder or one above it; `otherwise` if there is none, or if there are
        several in the nearest folder that has one.

    Raises:
        ConfigError: it has several, and nothing else is said.
    """
    for folder in (start, *start.parents):
        found = sorted(folder.glob(f"*{SUFFIX}"))
        if len(found) == 1:
            return found[0]
        if found and otherwise is None:
            hint = f'name one: --kvm-lab-file, or kvm(lab="{found[0].name}")'
            raise ConfigError(f"{folder} has more than one lab file", hint, looked_at=found)
        if found:
            break
    return otherwise


def locate_lab(wish: str, shipped: Path, folder: Path) -> Path:
    """Find a lab that was named.

    Args:
        wish: the path of a lab file, or the name of a shipped lab.
        shipped: the folder of the shipped labs, one folder each.
        folder: relative paths are seen from here.

    Returns:
        The lab file, whether it can be read or not.

    Raises:
        ConfigError: it is no path, and no shipped lab has this name.
    """
    if wish.endswith(".toml") or "/" in wish:
        return folder / wish
    known = {path.parent.name: path for path in sorted(shipped.glob(f"*/*{SUFFIX}"))}
    if wish not in known:
        raise ConfigError(
            f"no lab is called {wish!r}{nearest(wish, known)}",
            f"name one of {', '.join(known) or '(none is shipped)'}, or the path of a lab file",
            looked_at=[shipped],
        )
    return known[wish]


def lab_schema() -> dict[str, Any]:
    """Describe lab files to an editor.

    Returns:
        A JSON Schema, draft 2020-12.
    """
    schema = _LabFile.model_json_schema() | {"title": "pytest-kvmlab lab file"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(path).decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8", "save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: no valid TOML: {error}", "see https://toml.io/en/v1.0.0") from None


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is not a file", "name the lab file itself")
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "check the path") from None
    if len(content) > _LARGEST_FILE:
        raise ConfigError(f"{path} is larger than 1 MiB", "is it really a lab file?")
    return content


def _order_conflicts(lab: LabSpec) -> Iterator[Conflict]:
    for name, guest in lab.guests.items():
        for other in (other for other in guest.after if other not in lab.guests):
            yield Conflict(
                f"guest.{name}.after: no guest is called '{other}'{nearest(other, lab.guests)}",
                f"its guests: {', '.join(lab.guests)}",
            )
    try:
        TopologicalSorter({name: guest.after for name, guest in lab.guests.items()}).prepare()
    except CycleError as error:
        yield Conflict(f"guests wait for each other: {' after '.join(reversed(error.args[1]))}")
