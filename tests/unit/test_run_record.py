import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.run_record import BaselineRecord, RunRecord, parse_runs, read_runs, run_record_schema

SAMPLE = Path(__file__).parent / "run_records" / "micro.json"


def document() -> Any:
    return json.loads(SAMPLE.read_text())


def parsed(written: Any) -> RunRecord | BaselineRecord:
    return parse_runs(json.dumps(written).encode(), source="run.json")


def test_a_record_survives_writing_and_reading() -> None:
    record = read_runs(SAMPLE)[0]
    assert parse_runs(record.to_json().encode(), source="again") == record


def test_the_published_schema_accepts_a_real_record() -> None:
    schema = run_record_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document(), schema)


def test_a_field_of_a_later_version_is_passed_over() -> None:
    assert parsed(document() | {"weather": "fine"}) == read_runs(SAMPLE)[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "has version 2 of the schema"),
        ({"format": "something"}, "is neither the record of a run nor a baseline"),
        ({"tests": None}, "tests: should be a list"),
        ({"systems": {"x": {}}}, "systems.x.kernel: missing"),
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(document() | change)
    assert told in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 500])
def test_a_record_that_is_cut_off_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=r"run.json is no whole JSON"):
        parse_runs(SAMPLE.read_bytes()[:size], source="run.json")


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff\xfe", b"[]", b"1"])
def test_other_json_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigError, match=r"run\.json is (no whole JSON|neither the record)"):
        parse_runs(text, source="run.json")


def test_a_missing_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run.json cannot be read"):
        read_runs(tmp_path)
