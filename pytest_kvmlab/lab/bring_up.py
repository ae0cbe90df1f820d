"""A lab brought up by hand: its guests stay with a keeper of their own until they are taken down."""

import os
import time
from contextlib import closing
from dataclasses import replace

from pytest_kvmlab.journal import Journal
from pytest_kvmlab.keeper.client import Keeper
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.hosts import choose_host
from pytest_kvmlab.lab.kept import hand_over
from pytest_kvmlab.lab.run import capabilities_folder, open_run
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.labfile import LabSpec
from pytest_kvmlab.spec.options import Options
from pytest_kvmlab.spec.selection import with_kernels


def bring_up(lab: LabSpec, options: Options, *, seconds: float, progress: Progress) -> RunFolder:
    """Start the guests of a lab, in their order, and leave them to a keeper.

    Args:
        lab: the lab.
        options: how to run.
        seconds: after which the keeper ends them.
        progress: told what is being done.

    Returns:
        The run that they are of.

    Raises:
        KvmlabError: a guest does not get ready; what was started is taken down again.
    """
    choice = choose_host(options.host, keep=True)
    record = {"owner": os.getpid(), "started": time.time(), "lab": str(lab.path), "host": choice.kind}
    keeper = Keeper(
        {**record, "command": ["kvmlab", "lab", "up", lab.name]},
        capabilities=capabilities_folder(options) if choice.private else None,
    )
    with closing(keeper):
        kept = replace(options, keep="always")
        run = open_run(kept, choice, keeper.folder, worker="up", journal=Journal(), progress=progress)
        with closing(run):
            progress(f"starting {', '.join(lab.guests)}", None)
            with run.launcher.lab(with_kernels(lab), source=f"lab {lab.name}", witness=_keep):
                pass
        hand_over(keeper, seconds)
    return keeper.folder


def _keep(_guest: Guest, error: BaseException | None) -> bool:
    return error is None
