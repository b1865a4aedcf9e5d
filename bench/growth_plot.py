"""Draws how cost grows, for docs/benchmarks.md. Needs matplotlib: `pip install 'ocak[bench]'`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bench import paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bench.growth import Point

PICTURE = paths.ROOT / "docs" / "images" / "growth.png"
COLOURS = {"ocak": "#b3541e", "llama-server": "#2b6ca3"}
MARKERS = {"ocak": "o", "llama-server": "s"}
Figure = Callable[["Point"], float]


def draw(sequences: Sequence[Point], contexts: Sequence[Point]) -> str:
    """Write the picture; return a line of Markdown that shows it, or that says why there is none."""
    if find_spec("matplotlib") is None:
        return "not drawn: matplotlib is not installed (`pip install 'ocak[bench]'`)"
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((speed, prefill), (first, first_deep)) = pyplot.subplots(2, 2, figsize=(10, 7.5), sharex="col")
    _lines(speed, sequences, lambda point: point.tokens_per_s)
    _lines(first, sequences, lambda point: point.first_token_s)
    _lines(prefill, contexts, lambda point: point.prefill_per_s, " reads")
    _lines(prefill, contexts, lambda point: point.decode_per_s, " writes", "--")
    _lines(first_deep, contexts, lambda point: point.first_token_s)
    speed.set(title="Short sequences at once", ylabel="output tokens per second")
    first.set(xlabel="sequences at once (64 tokens in, 32 out)", ylabel="median time to first token (s)")
    prefill.set(title="One sequence, ever longer", ylabel="tokens per second")
    first_deep.set(xlabel="context (tokens)", ylabel="time to first token (s)")
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110, facecolor="white")
    pyplot.close(figure)
    return f"![Throughput and first-token time as they grow]({PICTURE.relative_to(paths.RESULTS.parent)})"


def _lines(axes: Axes, points: Sequence[Point], value: Figure, label: str = "", style: str = "-") -> None:
    """A line for each server, over the sizes, on logarithmic axes."""
    for server in dict.fromkeys(point.server for point in points):
        own = [point for point in points if point.server == server]
        axes.plot(
            [point.size for point in own],
            [value(point) for point in own],
            style,
            color=COLOURS[server],
            marker=MARKERS[server],
            label=server + label,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    low, high = axes.dataLim.intervaly
    axes.set_ylim(low / 2, high * 2)  # room for some numbers beside a flat line, and for the legend
    _ticks(axes, sorted({point.size for point in points}))
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(frameon=False)


def _ticks(axes: Axes, sizes: Iterable[int]) -> None:
    """Numbers as they are said: 8, 512, 2k, 0.1, 20."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xticks(list(sizes), [_short(size) for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _short(value: float) -> str:
    return f"{value / 1024:.0f}k" if value >= 2048 and value % 1024 == 0 else f"{value:g}"
