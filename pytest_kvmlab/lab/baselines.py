"""Baselines: runs that later ones are compared with, kept under a name in the user's data folder."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import platformdirs

from pytest_kvmlab.compare.comparison import Side
from pytest_kvmlab.errors import ConfigError, HostError
from pytest_kvmlab.lab.whole_file import write_whole
from pytest_kvmlab.spec.names import nearest
from pytest_kvmlab.spec.run_record import (
    BaselineRecord,
    RunRecord,
    check_baseline_name,
    parse_runs,
    read_runs,
)

_SUFFIX = ".json"


def baselines_folder() -> Path:
    """Where the baselines of this user are: not in the cache, which may be emptied at any time."""
    return platformdirs.user_data_path("pytest-kvmlab") / "baselines"


class Baselines:
    """The baselines in a folder.

    Args:
        folder: where they are; need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Their names."""
        return sorted(path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}"))

    def all(self) -> Iterator[BaselineRecord]:
        """Read them one by one.

        Raises:
            ConfigError: one cannot be read.
        """
        return map(self.get, self.names())

    def get(self, name: str) -> BaselineRecord:
        """Read one.

        Raises:
            ConfigError: there is none of that name, or it cannot be read.
        """
        path = self._path(name)
        if name not in self.names():
            raise self._missing(name)
        try:
            found = parse_runs(path.read_bytes(), source=str(path))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        if isinstance(found, RunRecord):
            raise ConfigError(f"{path} is a run, not a baseline", "kvmlab baseline remove, then save")
        return found

    def save(self, name: str, runs: Sequence[RunRecord], *, replace: bool = False) -> BaselineRecord:
        """Keep runs under a name.

        Args:
            name: letters, digits and `._+-`.
            runs: one or more.
            replace: also if the name is taken.

        Raises:
            ConfigError: the name is none, or is taken.
            HostError: the folder cannot be written to.
        """
        path = self._path(name)
        if name in self.names() and not replace:
            raise ConfigError(f"there is a baseline {name} already", "take another name, or --replace")
        record = BaselineRecord(name=name, saved=datetime.now(UTC), runs=tuple(runs))
        try:
            write_whole(path, record.to_json())
        except OSError as error:
            raise HostError(f"{path} cannot be written: {error.strerror}", "see to the folder") from error
        return record

    def remove(self, name: str) -> None:
        """Remove one.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self.names():
            raise self._missing(name)
        self._path(name).unlink()

    def side(self, wish: str, folder: Path) -> Side:
        """Find what is to be compared.

        Args:
            wish: the name of a baseline, or the path of one, of a `run.json`, or of a folder of artifacts.
            folder: relative paths are seen from here.

        Raises:
            ConfigError: there is no such thing, or it cannot be read.
        """
        if "/" in wish or wish.endswith(_SUFFIX) or (folder / wish).is_dir():
            return Side(wish, read_runs(folder / wish))
        return Side(wish, self.get(wish).runs)

    def _path(self, name: str) -> Path:
        try:
            return self._folder / f"{check_baseline_name(name)}{_SUFFIX}"
        except ValueError as error:
            raise ConfigError(f"{name!r}: {error}") from None

    def _missing(self, name: str) -> ConfigError:
        names = self.names()
        return ConfigError(
            f"there is no baseline {name}{nearest(name, names)}",
            f"name one of {', '.join(names) or '(there is none)'}, or a file",
            looked_at=[self._folder],
        )
