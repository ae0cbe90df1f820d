"""One process's part in a run: its host, what was proved about it, and what starts its guests."""

from dataclasses import dataclass
from pathlib import Path

import platformdirs

from pytest_kvmlab.drivers.libvirt import Versions
from pytest_kvmlab.errors import TeardownError
from pytest_kvmlab.journal import Journal
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.lab.accelerator import Verdict, prove
from pytest_kvmlab.lab.assembly import Assembly
from pytest_kvmlab.lab.background import told
from pytest_kvmlab.lab.capacity import Capacity
from pytest_kvmlab.lab.hosts import Host, HostChoice, open_host
from pytest_kvmlab.lab.images import Images
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.lab.template_shelf import Shelf
from pytest_kvmlab.plan.guest import Accel
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.options import Options, Reset


@dataclass(frozen=True)
class Run:
    """What one process of a run works with.

    Attributes:
        host: where guests run.
        verdict: the accelerator that was proved, and how slow guests are with it.
        versions: of libvirt and QEMU.
        launcher: starts guests.
        images: what they boot from.
    """

    host: Host
    verdict: Verdict
    versions: Versions
    launcher: Launcher
    images: Images

    def close(self) -> None:
        """End what still runs in the background, and disconnect from the host.

        Raises:
            TeardownError: a guest did not end.
        """
        failures = self.launcher.finish()
        self.host.close()
        if failures:
            raise TeardownError("\n".join(map(told, failures)), "look with: kvmlab ps")


def open_store(folder: Path | None) -> Store:
    """The image store in a folder, or, where none is named, in the user's cache folder."""
    return Store(folder or platformdirs.user_cache_path("pytest-kvmlab"))


def capabilities_folder(options: Options) -> Path:
    """Where libvirt remembers across runs what it found out about QEMU."""
    return open_store(options.store).root / "libvirt-capabilities"


def open_run(
    options: Options,
    choice: HostChoice,
    folder: RunFolder,
    *,
    worker: str,
    journal: Journal,
    progress: Progress,
) -> Run:
    """Connect to the host of a run and find out what it can do.

    Args:
        options: how to run; there is no pool of clones if they leave it open.
        choice: the kind of host; a keeper has the run's folder already.
        folder: the run's folder.
        worker: this process's name within the run.
        journal: where events go.
        progress: told of long work, such as building an image.

    Raises:
        HostError: the host does not answer, or lacks what was asked for.
    """
    store = open_store(options.store)
    host = open_host(choice, folder, worker=worker, capabilities=capabilities_folder(options))
    try:
        return _open_run(options, host, store, worker=worker, journal=journal, progress=progress)
    except BaseException:
        host.close()
        raise


def _open_run(
    options: Options, host: Host, store: Store, *, worker: str, journal: Journal, progress: Progress
) -> Run:
    images = Images(store, options.image, progress)
    run = host.folder.run
    capacity = Capacity(run, worker, options.memory, options.wait, journal, progress)

    def launcher(accel: Accel, scale: float = 1.0, reset: Reset = "boot") -> Launcher:
        keep = options.keep != "never"
        assembly = Assembly(host, images, accel, scale, journal, worker, keep=keep)
        shelf = Shelf(store.templates) if options.templates == "keep" else None
        return Launcher(assembly, images, capacity, reset, options.pool or 0, shelf)

    patience = options.timeout_scale or 1.0
    verdict = prove(options.accel, launcher, store.root / "accelerator", patience=patience)
    scale = options.timeout_scale or verdict.timeout_scale
    starts = launcher(verdict.accel, scale, options.reset)
    return Run(host, verdict, host.connection.versions(), starts, images)
