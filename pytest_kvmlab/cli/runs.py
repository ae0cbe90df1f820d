"""`kvmlab ps` and `kvmlab reap`: what runs here, and taking away what is left of the dead."""

import time
from typing import Annotated, Any

import typer

from pytest_kvmlab.cli.output import AsJson, print_json, print_table
from pytest_kvmlab.keeper.client import end_run
from pytest_kvmlab.keeper.reap import reap_dead_runs
from pytest_kvmlab.keeper.run_folder import RunFolder, is_alive, run_folders


def ps(as_json: AsJson = False) -> None:
    """List the runs of this user: who started them, their guests, and until when kept ones stay."""
    documents = [_as_document(run) for run in run_folders()]
    if as_json:
        print_json(documents)
    elif documents:
        print_table(
            ("RUN", "STATE", "GUESTS", "HOST", "STARTED", "COMMAND"), [_row(each) for each in documents]
        )
    else:
        print("no runs")


def _as_document(run: RunFolder) -> dict[str, Any]:
    record, kept = run.read("run.json"), run.read("kept.json")
    return {
        "run": run.run,
        "alive": is_alive(run),
        "kept_until": kept.get("until"),
        "guests": sorted(path.name for path in run.guests.glob("*")),
        "host": record.get("host"),
        "lab": record.get("lab"),
        "owner": record.get("owner"),
        "started": record.get("started"),
        "command": record.get("command", []),
        "folder": str(run.path),
    }


def _row(document: dict[str, Any]) -> tuple[str, ...]:
    state = "dead" if not document["alive"] else "running"
    if document["alive"] and document["kept_until"]:
        state = f"kept, {max(0.0, document['kept_until'] - time.time()) / 3600:.1f} h left"
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(document["started"] or 0))
    guests = ", ".join(document["guests"]) or "-"
    return document["run"], state, guests, document["host"] or "?", started, " ".join(document["command"])


def reap(
    kept: Annotated[bool, typer.Option("--kept", help="End the kept guests of this user, too.")] = False,
) -> None:
    """Take away what dead runs left behind. Runs that are alive are not touched."""
    for run in _end_kept_runs() if kept else []:
        print(f"{run.run}: ended, it was kept")
    dead = reap_dead_runs()
    for run in dead:
        print(f"{run.run}: {_STUCK if run.path.exists() else 'taken away'}")
    if any(run.path.exists() for run in dead):
        raise typer.Exit(1)


_STUCK = "still there, since a process of it does not end; try again later"


def _end_kept_runs() -> list[RunFolder]:
    return [run for run in run_folders() if run.read("kept.json") and end_run(run)]
