"""What a command in a guest left behind, whichever channel ran it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandResult:
    """The outcome of one command.

    Attributes:
        command: the command as it was given to the guest's shell.
        stdout: standard output as text; undecodable bytes become U+FFFD. The serial line
            has one stream only, so there it also carries what went to standard error.
        stderr: standard error as text; always empty over the serial line.
        exit_status: what the shell reported, 0 to 255; -1 where a signal ended the command.
        duration: seconds from sending the command to its last byte.
    """

    command: str
    stdout: str
    stderr: str
    exit_status: int
    duration: float

    @property
    def ok(self) -> bool:
        """Whether the command ended with exit status 0."""
        return self.exit_status == 0
