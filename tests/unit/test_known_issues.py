from datetime import date
from pathlib import Path

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.kernel_log.finding import Finding
from pytest_kvmlab.spec.expectation import Expectation, parse_expectation
from pytest_kvmlab.spec.known_issues import Excuse, KnownIssues, excuse, known_test, load_known_issues

WARNING = Finding("warning", "WARNING: CPU: 0 PID: 1 at drivers/net/tun.c:12 tun_get_user+0x1/0x2 [tun]")
ENTRY = """
[[kernel]]
kind = "warning"
pattern = "drivers/net/.*"
reason = "spurious"
link = "https://bugs.example.org/1"
until = 2026-03-31
"""


def known_issues(tmp_path: Path, text: str = ENTRY) -> KnownIssues:
    file = tmp_path / "known.toml"
    file.write_text(text)
    return load_known_issues(file)


@pytest.mark.parametrize(
    ("written", "covered"),
    [("warning", True), ("warning: tun_get_user", True), ("warning: usb", False), ("panic", False)],
)
def test_an_expectation_covers_its_kind_and_pattern(written: str, covered: bool) -> None:
    assert parse_expectation(written).covers(WARNING) is covered


def test_an_expectation_sees_where_a_kernel_broke() -> None:
    assert Expectation("oops", "lkdtm_").covers(Finding("oops", "BUG: unable to handle", where="lkdtm_BUG"))


@pytest.mark.parametrize(
    ("written", "told"),
    [("warnin", "did you mean 'warning'"), ("warning: (", "regular expression"), ("", "text"), (3, "text")],
)
def test_a_wrong_expectation_is_refused(written: object, told: str) -> None:
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        parse_expectation(written)


@pytest.mark.parametrize(
    ("today", "holds", "told"),
    [
        (date(2026, 3, 31), True, "known until 2026-03-31: spurious (https://bugs.example.org/1)"),
        (date(2026, 4, 1), False, "known until 2026-03-31, which is over: spurious"),
    ],
)
def test_an_entry_excuses_until_its_last_day(tmp_path: Path, today: date, holds: bool, told: str) -> None:
    found = excuse(WARNING, (), known_issues(tmp_path).kernel, today)
    assert found.holds is holds
    assert told in found.why


def test_the_entry_that_lasts_longest_counts(tmp_path: Path) -> None:
    entries = known_issues(tmp_path, ENTRY + ENTRY.replace("2026", "2027"))
    assert excuse(WARNING, (), entries.kernel, date(2026, 12, 1)).holds


def test_what_no_entry_covers_has_no_excuse(tmp_path: Path) -> None:
    assert excuse(Finding("oom", "x"), (), known_issues(tmp_path).kernel, date(2026, 1, 1)) == Excuse(
        False, ""
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("2026-03-31", '"soon"'), "kernel[0].until"),
        (("reason", "raison"), "unknown key"),
        (('"warning"', '"warnings"'), "did you mean 'warning'"),
        (("drivers/net/.*", "("), "regular expression"),
        (("https://", ""), "address of a bug report"),
        (("[[kernel]]", "[[kernel"), "no valid TOML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        known_issues(tmp_path, ENTRY.replace(*change))
    assert told in str(caught.value)
    assert "known.toml" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_known_issues(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("test", "holds"),
    [("test_a.py::test_x[1]", True), ("test_b.py::test_1", True), ("test_a.py::test_y", False)],
)
def test_a_known_test_is_an_id_or_a_pattern(tmp_path: Path, test: str, holds: bool) -> None:
    entry = ENTRY.replace("kernel", "test").replace('kind = "warning"\n', "").replace("pattern", "id")
    first = entry.replace("drivers/net/.*", "test_a.py::test_x[1]")
    entries = known_issues(tmp_path, first + entry.replace("drivers/net/.*", "test_b.py::*"))
    assert known_test(test, entries.test, date(2026, 1, 1)).holds is holds
