"""`kvmlab bisect`: the first kernel under which a suite fails."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pytest_kvmlab.cli.output import AsJson, print_json
from pytest_kvmlab.cli.shelf import StoreFolder
from pytest_kvmlab.compare.bisection import Bisection
from pytest_kvmlab.lab.bisecting import Question, judged, kernels_between, search
from pytest_kvmlab.lab.run import open_store

_STATE = Path(".pytest_cache", "kvmlab-bisect.json")
_ARTIFACTS = Path("kvmlab-artifacts")


def bisect(
    arguments: Annotated[list[str], typer.Argument(help="What pytest is to run, after --.")],
    good: Annotated[str, typer.Option(metavar="SPEC", help="A kernel under which the tests pass.")],
    bad: Annotated[str, typer.Option(metavar="SPEC", help="A kernel under which they fail.")],
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Find the first kernel under which tests fail; a search that was stopped goes on where it was."""
    versions = kernels_between(good, bad, open_store(store))
    question = Question(versions[0], versions[-1], tuple(arguments))
    own = [f"--kvm-store={store}"] if store else []
    run = Question(question.good, question.bad, (*question.arguments, *own))
    found = search(
        question,
        versions,
        lambda version: judged(run, version, _ARTIFACTS / f"bisect-{version}"),
        _STATE,
        tell=_tell,
    )
    if as_json:
        print_json(_document(found))
    else:
        print(sentence(found))


def sentence(found: Bisection) -> str:
    """Say what came out.

    Args:
        found: the search at its end.
    """
    last_good, *_ = found.versions[found.bounds[0] :]
    *skipped, first_bad = found.suspects
    tried = f"{len(found.verdicts)} runs, {len(found.versions)} kernels"
    if skipped:
        return (
            f"the first kernel under which the tests fail is {first_bad}, or one of those before it "
            f"under which they could not run: {', '.join(skipped)}; {last_good} is good ({tried})"
        )
    return f"{first_bad} is the first kernel under which the tests fail; {last_good} is good ({tried})"


def _document(found: Bisection) -> dict[str, object]:
    return {
        "last_good": found.versions[found.bounds[0]],
        "first_bad": list(found.suspects),
        "verdicts": dict(found.verdicts),
        "kernels": list(found.versions),
    }


def _tell(found: Bisection) -> None:
    left = len(found.open).bit_length()
    print(f"kvmlab: kernel {found.next}: {len(found.open)} kernels left, {left} runs", file=sys.stderr)
