"""Plots as SVG inside a page."""

import io
import statistics
import warnings
from collections.abc import Mapping, Sequence

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.report.page import printable

try:
    import matplotlib as mpl
    from markupsafe import Markup
    from matplotlib.figure import Figure
except ImportError as error:
    raise ConfigError(
        f"plots need {error.name}, which is not installed", "pip install 'pytest-kvmlab[report]'"
    ) from error

_WIDTH, _LANE, _MARGIN = 5.0, 0.35, 0.5  # inches
_MOST_POINTS = 200
_LONGEST_LABEL = 40


def times_plot(samples: Mapping[str, Sequence[float]], *, name: str) -> Markup:
    """Draw the samples of one phase, a lane for each side.

    Args:
        samples: seconds, by the name of the side.
        name: what no other plot of the page is called; it makes the same plot the same text each time.

    Returns:
        An `<svg>` element.
    """
    # Names are never formulas; text stays text, so that it can be searched and enlarged. A letter that
    # matplotlib's font lacks is only measured wrongly: the browser has fonts of its own.
    settings = mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "text.parse_math": False})
    with settings, warnings.catch_warnings(action="ignore"):
        return _svg(_drawn(samples))


def _drawn(samples: Mapping[str, Sequence[float]]) -> Figure:
    figure = Figure(figsize=(_WIDTH, _MARGIN + _LANE * len(samples)), layout="constrained")
    axes = figure.subplots()
    for lane, values in enumerate(samples.values()):
        drawn = list(values)[:: len(values) // _MOST_POINTS + 1]
        axes.plot(drawn, [lane] * len(drawn), "o", color="#2c6fbb", alpha=0.4, markersize=4)
        axes.plot([statistics.median(values)] * 2, [lane - 0.3, lane + 0.3], color="#c0392b", linewidth=2)
    axes.set_yticks(range(len(samples)), [printable(each)[:_LONGEST_LABEL] for each in samples])
    axes.set_ylim(len(samples) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _svg(figure: Figure) -> Markup:
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    return Markup(text[text.index("<svg") :])  # noqa: S704 -- matplotlib has escaped every text in it
