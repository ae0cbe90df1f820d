"""`kvmlab baseline`: runs that later ones are compared with."""

from pathlib import Path
from typing import Annotated

import typer

from pytest_kvmlab.cli.output import AsJson, print_json, print_table
from pytest_kvmlab.lab.baselines import Baselines, baselines_folder
from pytest_kvmlab.spec.run_record import BaselineRecord, read_runs, run_record_schema

app = typer.Typer(help="Keep runs that later ones are compared with.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The name of a baseline.")]


@app.command()
def save(
    name: Name,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Records of runs, or folders of artifacts; kvmlab-artifacts if none is named."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Also if the name is taken.")] = False,
) -> None:
    """Keep one run or several under a name; of several, the times are compared with more certainty."""
    found = [run for path in runs or [Path("kvmlab-artifacts")] for run in read_runs(path)]
    saved = Baselines(baselines_folder()).save(name, found, replace=replace)
    print(f"{name}: {len(saved.runs)} runs, {_tests(saved)} tests")


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the baselines."""
    found = list(Baselines(baselines_folder()).all())
    if as_json:
        print_json([_document(each) for each in found])
    elif found:
        print_table(("NAME", "RUNS", "TESTS", "KERNELS", "SAVED"), [_row(each) for each in found])
    else:
        print("no baselines")


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Tell what a baseline is made of."""
    found = Baselines(baselines_folder()).get(name)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    rows = [
        (
            f"{run.started:%Y-%m-%d %H:%M}",
            run.suite,
            str(len(run.tests)),
            run.host.kernel if run.host else "no guests",
        )
        for run in found.runs
    ]
    print_table(("STARTED", "SUITE", "TESTS", "HOST"), rows)


@app.command()
def remove(name: Name) -> None:
    """Remove a baseline."""
    Baselines(baselines_folder()).remove(name)
    print(f"{name}: removed")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the record of a run."""
    print_json(run_record_schema())


def _document(baseline: BaselineRecord) -> dict[str, object]:
    return {
        "name": baseline.name,
        "runs": len(baseline.runs),
        "tests": _tests(baseline),
        "kernels": _kernels(baseline),
        "saved": baseline.saved.isoformat(),
    }


def _row(baseline: BaselineRecord) -> tuple[str, ...]:
    return (
        baseline.name,
        str(len(baseline.runs)),
        str(_tests(baseline)),
        ", ".join(_kernels(baseline)),
        f"{baseline.saved:%Y-%m-%d %H:%M}",
    )


def _tests(baseline: BaselineRecord) -> int:
    return len({test.id for run in baseline.runs for test in run.tests})


def _kernels(baseline: BaselineRecord) -> list[str]:
    guests = (guest for run in baseline.runs for test in run.tests for guest in test.guests)
    return sorted({guest.kernel for guest in guests if guest.kernel})
