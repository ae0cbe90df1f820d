"""What a run writes down about itself, `run.json`: enough to be compared with other runs, years later.

A field that is added keeps the version, because readers pass over what they do not know; one that
changes or goes gets the next version, and `parse_runs` says what it can read.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
)

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.kernel_log.finding import Kind
from pytest_kvmlab.spec.names import IMAGE_NAME
from pytest_kvmlab.spec.validation import validate

VERSION = 1
RUN_RECORD = "run.json"
FORMAT: Literal["pytest-kvmlab run"] = "pytest-kvmlab run"
BASELINE: Literal["pytest-kvmlab baseline"] = "pytest-kvmlab baseline"
_LARGEST_FILE = 256 * 2**20
_HINT = "take a run.json that a run wrote, or a baseline that was saved of one"

Outcome = Literal["passed", "failed", "error", "skipped", "xfailed", "xpassed"]
Phase = Literal["setup", "call", "teardown"]


def check_baseline_name(name: str) -> str:
    """Accept the name of a baseline: a name of files, so never a path.

    Raises:
        ValueError: it is not a letter or digit followed by up to 63 letters, digits or `._+-`.
    """
    if not re.fullmatch(IMAGE_NAME, name):
        raise ValueError("a baseline's name is a letter or digit, then up to 63 of these or '._+-'")
    return name


BaselineName = Annotated[str, AfterValidator(check_baseline_name)]


class Record(BaseModel):
    """A part of a record: frozen; what a later version of the same schema adds is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class HostRecord(Record):
    """Where the guests were; `cpu_pressure` is the share of the run in which tasks waited for a processor."""

    kernel: str
    architecture: str
    processor: str
    microcode: str
    processors: NonNegativeInt
    kind: str
    libvirt: str
    qemu: str
    accelerator: str
    accelerator_why: str
    cpu_pressure: float | None = None


class DeviceRecord(Record):
    """A device that a guest's kernel saw, and the driver that had it."""

    bus: str
    id: str
    driver: str


class SystemRecord(Record):
    """What was loaded and plugged in the first guest of its kind when it was ready, before a test used it."""

    kernel: str
    modules: tuple[str, ...]
    devices: tuple[DeviceRecord, ...]


class FindingRecord(Record):
    """What a guest's kernel complained about; `identity` is the same in other boots and kernels."""

    kind: Kind
    title: str
    identity: str
    count: NonNegativeInt
    excuse: str
    excused: bool
    stack: tuple[str, ...]


class PhaseRecord(Record):
    """A phase of a guest: create, ssh, ready, … in seconds; `outcome` is empty if it went well."""

    name: str
    started: NonNegativeFloat
    seconds: NonNegativeFloat
    outcome: str


class CardRecord(Record):
    """A network card: the network of the lab that it is in, or `user`.

    `simulated_bridge` is the bridge that a network with `simulated = true` stood for.
    """

    network: str
    mac: str
    simulated_bridge: str = ""


class GuestRecord(Record):
    """A guest as one test had it."""

    name: str
    image: str
    image_identity: str
    kernel: str
    folder: str
    networks: tuple[CardRecord, ...]
    dongles: tuple[str, ...] = ()
    tainted: str
    system: str
    phases: tuple[PhaseRecord, ...]
    findings: tuple[FindingRecord, ...]


class TestRecord(Record):
    """A test: how it went, how long its parts took, and its guests."""

    __test__ = False  # not one of pytest's own

    id: str
    outcome: Outcome
    started: NonNegativeFloat
    seconds: Mapping[Phase, NonNegativeFloat]
    message: str
    infrastructure: bool
    attempts: NonNegativeInt
    guests: tuple[GuestRecord, ...]


class RunRecord(Record):
    """A run. `suite` is the name of its root folder; `systems` has what its guests refer to as `system`.

    `resets` says how many guests became clean in which way, and why not in a quicker one.
    """

    format: Literal["pytest-kvmlab run"] = FORMAT
    version: Annotated[int, Field(ge=1)] = VERSION
    plugin: str
    suite: str
    started: AwareDatetime
    seconds: NonNegativeFloat
    exit_status: int
    host: HostRecord | None
    systems: Mapping[str, SystemRecord]
    resets: Mapping[str, NonNegativeInt] = Field(default_factory=dict)
    tests: tuple[TestRecord, ...]

    def to_json(self) -> str:
        """Write the record down."""
        return self.model_dump_json(indent=1) + "\n"


class BaselineRecord(Record):
    """Runs that later ones are compared with, under a name."""

    format: Literal["pytest-kvmlab baseline"] = BASELINE
    version: Annotated[int, Field(ge=1)] = VERSION
    name: BaselineName
    saved: AwareDatetime
    runs: Annotated[tuple[RunRecord, ...], Field(min_length=1)]

    def to_json(self) -> str:
        """Write the baseline down."""
        return self.model_dump_json(indent=1) + "\n"


def parse_runs(text: bytes, *, source: str) -> RunRecord | BaselineRecord:
    """Read the record of a run, or a baseline.

    Args:
        text: the content of the file.
        source: the file's path, for the message.

    Returns:
        What the file says that it is.

    Raises:
        ConfigError: it is cut off, is something else, or was written by a later version of this package.
    """
    try:
        written: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is no whole JSON: {error}", _HINT) from None
    model = _MODELS.get(written.get("format")) if isinstance(written, dict) else None
    if model is None:
        raise ConfigError(f"{source} is neither the record of a run nor a baseline", _HINT)
    if isinstance(version := written.get("version"), int) and version > VERSION:
        raise ConfigError(
            f"{source} has version {version} of the schema; this pytest-kvmlab reads up to {VERSION}",
            "read it with the pytest-kvmlab that wrote it, or a later one",
        )
    return validate(model, written, source=source)


def read_runs(path: Path) -> tuple[RunRecord, ...]:
    """Read the runs in a file, or in a folder of artifacts.

    Args:
        path: a `run.json` under any name, a baseline, or the folder that a `run.json` is in.

    Raises:
        ConfigError: it cannot be read, or is neither; see `parse_runs`.
    """
    file = path / RUN_RECORD if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            text = opened.read(_LARGEST_FILE)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}", _HINT) from None
    found = parse_runs(text, source=str(file))
    return found.runs if isinstance(found, BaselineRecord) else (found,)


_MODELS: Mapping[object, type[RunRecord] | type[BaselineRecord]] = {
    FORMAT: RunRecord,
    BASELINE: BaselineRecord,
}


def run_record_schema() -> dict[str, Any]:
    """Describe records to whoever reads them.

    Returns:
        A JSON Schema, draft 2020-12.
    """
    schema = RunRecord.model_json_schema() | {"title": "pytest-kvmlab run"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
