"""Where the guests of a session run, and whose run that is: this process's, or its xdist controller's."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.client import Keeper
from pytest_kvmlab.keeper.reap import reap_dead_runs
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.lab.hosts import HostChoice, choose_host
from pytest_kvmlab.lab.run import capabilities_folder
from pytest_kvmlab.spec.options import Options

_WORKER_INPUT = "kvmlab"


@dataclass(frozen=True)
class Place:
    """Where guests run.

    Attributes:
        choice: the kind of host, and why.
        folder: the run's folder.
        keeper: the run's keeper, in the one process that owns the run: not in xdist's workers.
    """

    choice: HostChoice
    folder: RunFolder
    keeper: Keeper | None


def find_place(config: pytest.Config, options: Options) -> Place | HostError:
    """Own a new run, or, in an xdist worker, take part in the controller's.

    Args:
        config: pytest's.
        options: how to run.

    Returns:
        The place, or why no guests can be started here: that is for the tests to tell which need one.

    Raises:
        ConfigError: the options do not go together.
    """
    told = getattr(config, "workerinput", {}).get(_WORKER_INPUT)
    if told is None:
        return _own_run(config, options)
    if "refusal" in told:
        return HostError(told["refusal"])
    return Place(HostChoice(told["kind"], told["why"]), RunFolder(Path(told["folder"])), None)


def tell_worker(node: Any, place: Place | HostError) -> None:
    """Give an xdist worker what `find_place` returns there.

    Args:
        node: xdist's `WorkerController`, which carries plain data only.
        place: where guests run, or why they cannot.
    """
    if isinstance(place, HostError):
        node.workerinput[_WORKER_INPUT] = {"refusal": str(place)}
    else:
        choice = place.choice
        facts = {"folder": str(place.folder.path), "kind": choice.kind, "why": choice.why}
        node.workerinput[_WORKER_INPUT] = facts


def _own_run(config: pytest.Config, options: Options) -> Place | HostError:
    if config.option.collectonly:
        return HostError("tests are only collected")
    try:
        reap_dead_runs()
        choice = choose_host(options.host, keep=options.keep != "never")
        capabilities = capabilities_folder(options) if choice.private else None
        keeper = Keeper(_record(config, choice), capabilities=capabilities)
    except HostError as error:
        return error
    return Place(choice, keeper.folder, keeper)


def _record(config: pytest.Config, choice: HostChoice) -> dict[str, Any]:
    """Who owns a run, for `kvmlab ps`."""
    return {
        "owner": os.getpid(),
        "started": time.time(),
        "command": ["pytest", *map(str, config.invocation_params.args)],
        "folder": str(config.invocation_params.dir),
        "host": choice.kind,
        "python": sys.executable,
    }
