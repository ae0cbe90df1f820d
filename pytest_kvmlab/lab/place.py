"""Where a template is put."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Where one template is.

    Attributes:
        folder: for what is on disk.
        memory: for the memory of its guests: in memory itself, if there is room.
    """

    folder: Path
    memory: Path

    def of_guest(self, number: int) -> Path:
        """The folder of one of its guests, made."""
        folder = self.folder / str(number)
        folder.mkdir(exist_ok=True)
        return folder

    def memory_of(self, number: int) -> Path:
        """The file that is the memory of one of its guests."""
        return self.memory / f"{self.folder.name}-{number}"
