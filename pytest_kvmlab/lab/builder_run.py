"""A run for builders: it begins when a guest is needed for an image, and ends with that guest."""

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from pytest_kvmlab.journal import Journal
from pytest_kvmlab.keeper.client import Keeper
from pytest_kvmlab.lab.base_image import BaseImage
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.hosts import choose_host
from pytest_kvmlab.lab.run import capabilities_folder, open_run
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.options import Options


@dataclass(frozen=True)
class BuilderRuns:
    """Starts each guest in a run of its own: `pytest_kvmlab.lab.base_image.StartsGuests`.

    Attributes:
        options: how to run.
        progress: told what is being done.
    """

    options: Options
    progress: Progress

    @contextmanager
    def start(
        self, name: str, keys: GuestKeys, image: BaseImage, *, source: str, timeout: float
    ) -> Iterator[Guest]:
        """Start a guest in a run that ends with it."""
        choice = choose_host(self.options.host)
        record = {"owner": os.getpid(), "started": time.time(), "host": choice.kind}
        keeper = Keeper(
            {**record, "command": ["kvmlab", "image", "build", name]},
            capabilities=capabilities_folder(self.options) if choice.private else None,
        )
        with closing(keeper):
            run = open_run(
                self.options,
                choice,
                keeper.folder,
                worker="build",
                journal=Journal(),
                progress=self.progress,
            )
            with (
                closing(run),
                run.launcher.start(name, keys, image, source=source, timeout=timeout) as guest,
            ):
                yield guest
