"""`kvmlab`, the command: look at this machine, its images, its labs, and at what runs on it."""

import signal
import sys
from importlib.metadata import version as installed_version

import typer

from pytest_kvmlab.cli import baseline, bisect, compare, doctor, images, labs, runs, usb
from pytest_kvmlab.errors import KvmlabError

app = typer.Typer(
    name="kvmlab",
    help="Look after this machine, its images and labs. Tests with guests run by: pytest --kvm-lab",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(images.app, name="image")
app.add_typer(labs.app, name="lab")
app.add_typer(baseline.app, name="baseline")
app.add_typer(usb.app, name="usb")
app.command("bisect")(bisect.bisect)
app.command("compare")(compare.compare)
app.command("doctor")(doctor.doctor)
app.command("ps")(runs.ps)
app.command("reap")(runs.reap)


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        print(installed_version("pytest-kvmlab"))
        raise typer.Exit


def main() -> None:
    """Run the command; an error of ours is told without a traceback, with exit status 1."""
    # As Ctrl-C does: what is half done is taken away on the way out.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        app()
    except KvmlabError as error:
        print(f"kvmlab: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
