"""What the report header says about the way in which tests get clean guests."""

from pytest_kvmlab.spec.options import KeepTemplates, Reset

_LASTS: dict[KeepTemplates, str] = {"run": "for the run", "keep": "kept for later runs"}
_COUNTED = "the summary counts which it was"


def clean_guests_line(reset: Reset, *, own_host: bool, templates: KeepTemplates, pool: int) -> str:
    """Say which way is taken, or tried first, and why; what came of it is only known at the end.

    Args:
        reset: what was asked for.
        own_host: whether the libvirt is the run's own, without which there are no clones.
        templates: for how long they stay.
        pool: how many clones wait in each process.

    Returns:
        A line for a person.
    """
    clones = f"templates {_LASTS[templates]}, pool of {pool}"
    match reset:
        case "auto" if own_host:
            return f"clone is tried first, as the quickest ({clones}), then rewind, then boot; {_COUNTED}"
        case "auto":
            return (
                f"rewind is tried first, as there are no clones on a libvirt of others, then boot; {_COUNTED}"
            )
        case "clone":
            return f"clone, as asked for ({clones})"
        case _:
            return f"{reset}, as asked for"
