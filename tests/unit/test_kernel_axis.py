"""Runs under several kernels, compared."""

from pathlib import Path

import pytest
import typer

from pytest_kvmlab.cli.compare import compare as command
from pytest_kvmlab.compare.comparison import Side, compare
from pytest_kvmlab.compare.kernel_axis import kernels_of, under
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.run_record import RunRecord
from tests.unit.recorded_runs import case, run


def changes(before: RunRecord, after: RunRecord) -> dict[str, str]:
    found = compare(Side("before", (before,)), Side("after", (after,)))
    return {each.id: each.change for each in found.tests}


def test_a_run_falls_into_one_for_each_kernel() -> None:
    whole = run(case("test_it[a-kernel=6.1]"), case("test_it[kernel=6.12]", "failed"), case("test_other"))
    assert kernels_of([whole]) == ("6.1", "6.12")
    assert [[test.id for test in each.tests] for each in under("6.12", [whole])] == [
        ["test_shop.py::test_it[kernel=6.12]"]
    ]


def test_runs_under_one_kernel_each_compare_test_by_test() -> None:
    before, after = run(case("test_it[kernel=6.1]")), run(case("test_it[kernel=6.12]", "failed"))
    assert changes(before, after) == {"test_shop.py::test_it": "newly failing"}


def test_a_baseline_without_the_option_compares_with_a_run_under_a_kernel() -> None:
    assert changes(run(case("test_it[a]")), run(case("test_it[a-kernel=6.12]"))) == {}


def test_runs_under_several_kernels_compare_under_each() -> None:
    before = run(case("test_it[kernel=6.1]"), case("test_it[kernel=6.12]"))
    after = run(case("test_it[kernel=6.1]"), case("test_it[kernel=6.12]", "failed"))
    assert changes(before, after) == {"test_shop.py::test_it[kernel=6.12]": "newly failing"}


@pytest.mark.parametrize("test", ["test_it[kernel=6.1] and more", "test_kernel=6.1", "test_it[kernel]"])
def test_other_ids_name_no_kernel(test: str) -> None:
    assert kernels_of([run(case(test))]) == ()


def test_one_run_is_compared_with_itself_kernel_by_kernel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = run(case("test_it[kernel=6.1]"), case("test_it[kernel=6.12]", "failed"))
    (tmp_path / "run.json").write_text(both.to_json())
    with pytest.raises(typer.Exit):
        command([str(tmp_path)])
    told = capsys.readouterr().out
    assert "newly failing" in told
    assert f"{tmp_path} under 6.12:" in told


def test_one_run_under_one_kernel_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(run(case("test_it[kernel=6.1]")).to_json())
    with pytest.raises(ConfigError, match="nothing to compare with"):
        command([str(tmp_path)])
