"""`kvmlab lab`: labs by hand: check their files, test them, bring them up, look inside, take them down."""

import os
import re
import sys
from getpass import getpass
from pathlib import Path
from typing import Annotated

import typer

from pytest_kvmlab.cli.output import AsJson, print_json, progress
from pytest_kvmlab.drivers.terminal import interact
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.keeper.client import end_run
from pytest_kvmlab.keeper.run_folder import RunFolder, is_alive, run_folders
from pytest_kvmlab.lab.bring_up import bring_up
from pytest_kvmlab.lab.kept import KEPT_SECONDS, kept_guests, serial_of, ssh_to
from pytest_kvmlab.lab.shipped import shipped_labs
from pytest_kvmlab.spec.labfile import LabSpec, lab_schema, load_lab, locate_lab
from pytest_kvmlab.spec.names import nearest
from pytest_kvmlab.spec.options import resolve_options

app = typer.Typer(help="Check, test and use labs by hand.", no_args_is_help=True)

_RUN_ID = re.compile(r"[0-9a-f]{8}")
Up = Annotated[str, typer.Argument(help="A lab that is up, or the id of a run that kept guests.")]
Lab = Annotated[str, typer.Argument(help="The path of a NAME.lab.toml, or the name of a shipped lab.")]
GuestName = Annotated[str, typer.Argument(help="A guest of the lab.")]


def _load(lab: str) -> LabSpec:
    return load_lab(locate_lab(lab, shipped_labs(), Path.cwd()).absolute())


@app.command()
def check(lab: Lab, as_json: AsJson = False) -> None:
    """Read a lab file and say what is wrong with it; no guest is started, no privileges are needed."""
    found = _load(lab)
    if as_json:
        print_json({"lab": found.name, "file": str(found.path), "guests": sorted(found.guests)})
    else:
        print(f"{found.path}: good, guests: {', '.join(found.guests)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of lab files, for editors."""
    print_json(lab_schema())


@app.command("test", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run_tests(context: typer.Context, lab: Lab) -> None:
    """Run the tests that lie beside a lab file; further arguments go to pytest."""
    found = _load(lab)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--kvm-lab",
        f"--kvm-lab-file={found.path}",
        str(found.path.parent),
    ]
    os.execv(sys.executable, [*command, *context.args])


@app.command()
def up(
    lab: Lab,
    hours: Annotated[
        float, typer.Option(min=0.01, max=8760, help="After so many hours the guests end by themselves.")
    ] = KEPT_SECONDS / 3600,
) -> None:
    """Start the guests of a lab, and leave them running."""
    found = _load(lab)
    if _run_of(found):
        raise ConfigError(f"lab {found.name} is up already", f"kvmlab lab down {lab}")
    with progress() as show:
        run = bring_up(
            found, resolve_options({"lab": True}, os.environ, {}), seconds=hours * 3600, progress=show
        )
    for name in kept_guests(run):
        print(f"{name}: up; kvmlab lab shell {lab} {name}")
    for name, network in found.networks.items():
        if network.simulated:
            print(f"network {name}: simulated: a bridge of the lab's own stands for {network.bridge}")
    print(f"until {hours:g} h from now, or: kvmlab lab down {lab}")


@app.command()
def down(lab: Up) -> None:
    """End the guests of a lab that is up, and take away everything of theirs."""
    end_run(_kept_run(lab))
    print(f"{lab}: down")


@app.command()
def shell(lab: Up, guest: GuestName) -> None:
    """Open a shell in a guest of a lab that is up, over SSH."""
    run, folder = kept_guest(lab, guest)
    channel = ssh_to(run, folder, ask_password=lambda: getpass(f"password of {guest}: "))
    channel.open(60.0)
    raise typer.Exit(channel.interact())


@app.command()
def console(lab: Up, guest: GuestName) -> None:
    """Show the serial console of a guest of a lab that is up, and type on it; Ctrl-] leaves it."""
    _, folder = kept_guest(lab, guest)
    with serial_of(folder) as line:
        interact(line)


def kept_guest(lab: str, guest: str) -> tuple[RunFolder, Path]:
    """A guest of a lab that is up, or of a run that kept guests: its run and its folder.

    Raises:
        ConfigError: there is none; the message says what there is.
    """
    run = _kept_run(lab)
    guests = kept_guests(run)
    if guest not in guests:
        raise ConfigError(
            f"{lab} has no guest {guest!r}{nearest(guest, guests)}", f"its guests: {', '.join(guests)}"
        )
    return run, guests[guest]


def _kept_run(lab: str) -> RunFolder:
    """The run that a lab is up in; a run's own id, as a failed test tells it, will do."""
    runs = [run for run in run_folders() if run.run == lab and is_alive(run)]
    if not runs and _RUN_ID.fullmatch(lab):
        raise ConfigError(f"run {lab} has ended, or never was", "see: kvmlab ps")
    run = runs[0] if runs else _run_of(_load(lab))
    if run is None:
        raise ConfigError(f"lab {lab} is not up", f"kvmlab lab up {lab}, or see: kvmlab ps")
    return run


def _run_of(lab: LabSpec) -> RunFolder | None:
    """The run that keeps this lab, if it is up."""
    runs = [
        run for run in run_folders() if run.read("run.json").get("lab") == str(lab.path) and is_alive(run)
    ]
    return runs[0] if runs else None
