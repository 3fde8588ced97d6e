"""Where time goes: both runs, stage by stage, once or over many rounds."""

import plotly.graph_objects as go

from vtw_demo.comparison.compare import Comparison, RunName
from vtw_demo.comparison.repeated_timing import STAGES, RepeatedTiming, Stage
from vtw_demo.formats import milliseconds, run_title
from vtw_demo.measurements.equal_flops import recipe_in_words
from vtw_demo.plots.style import RUN_COLOURS, TRACES, styled
from vtw_demo.plots.tab import Cell, Table
from vtw_demo.plots.templates import reading

_NAMES: dict[Stage, str] = {
    "encode_ms": "image encoding",
    "prefill_ms": "prefill",
    "decode_ms_per_token": "decode, per token",
    "total_ms": "total",
}
_AXIS_NAMES = {stage: name.replace(" ", "<br>", 1) for stage, name in _NAMES.items()}  # for narrow windows


def timing_figure(comparison: Comparison, repeated: RepeatedTiming | None = None) -> go.Figure:
    """Time by stage, a bar for each run with its figure above it; totals are without encoding where the picture was
    encoded once for both. With rounds they are medians over these, with a line from the lowest to the highest and a dot
    for each round."""
    times, runs = _times(comparison, repeated), comparison.runs()
    stages = [stage for stage in STAGES if any(times[run, stage] is not None for run in runs)]
    figure = go.Figure()
    axis_names = _AXIS_NAMES | {"total_ms": _total(comparison, repeated).replace(" ", "<br>", 1)}
    for run in runs:
        figure.add_bar(
            x=[axis_names[stage] for stage in stages],
            y=[times[run, stage] for stage in stages],
            name="Beside it" if run == "beside" else run_title(run, comparison.layer),
            offsetgroup=run,
            # Rounds are drawn over them, in the same colour.
            marker={"color": RUN_COLOURS[run], "opacity": 1 if repeated is None else 0.45},
            text=[_figure_of(times[run, stage]) for stage in stages] if repeated is None else None,
            **TRACES["time"],
        )
    if repeated is not None:
        _add_rounds(figure, repeated, runs, stages)
    of = "one run" if repeated is None or repeated.rounds == 1 else f"median of {repeated.rounds} rounds"
    return styled(figure, "timing", yaxis_title_text=f"time in ms, {of}")


def timing_reading(comparison: Comparison, repeated: RepeatedTiming | None = None) -> str:
    """How the runs' prefill and decoding compare; over rounds by the ratio within each, median and extremes."""
    assert repeated is None or repeated.layer == comparison.layer
    runs = {"full": comparison.full, "withdrawn": comparison.withdrawn, "beside": comparison.beside}
    said = None if comparison.recipe is None else recipe_in_words(comparison.recipe)
    return reading("timing", **runs, said_beside=said, repeated=repeated)


def timing_table(comparison: Comparison, repeated: RepeatedTiming | None = None) -> Table:
    """A row for each stage and run; with rounds, the median, the extremes and each round's time."""
    times = _times(comparison, repeated)
    columns = ["stage", "run", "time (ms)"]
    if repeated is not None:
        rounds = [f"round {number} (ms)" for number in range(1, repeated.rounds + 1)]
        columns = ["stage", "run", "median (ms)", "lowest (ms)", "highest (ms)", *rounds]
    rows = []
    names = _NAMES | {"total_ms": _total(comparison, repeated)}
    for (run, stage), time in times.items():
        row: list[Cell] = [names[stage], run, time]
        if repeated is not None:
            of_rounds = repeated.times(run, stage) or (None,) * repeated.rounds
            spread = repeated.spread(run, stage)
            row += [None, None] if spread is None else [spread.lowest, spread.highest]
            row += of_rounds
        rows.append(tuple(row))
    return Table(tuple(columns), tuple(rows))


def _total(comparison: Comparison, repeated: RepeatedTiming | None) -> str:
    """What the totals are called: rounds encode the picture in every run."""
    return "total without encoding" if repeated is None and comparison.encoded_once else _NAMES["total_ms"]


def _times(comparison: Comparison, repeated: RepeatedTiming | None) -> dict[tuple[RunName, Stage], float | None]:
    """Milliseconds of each run's stages, the median where there are rounds; None for a stage that the run hasn't."""
    runs = comparison.runs()
    if repeated is None:
        times = {(run, stage): getattr(getattr(comparison, run), stage) for stage in STAGES for run in runs}
        if comparison.encoded_once:
            times |= {(run, "total_ms"): getattr(comparison, run).after_encoding_ms for run in runs}
        return times
    assert repeated.layer == comparison.layer
    spreads = {(run, stage): repeated.spread(run, stage) for stage in STAGES for run in runs}
    return {key: None if spread is None else spread.median for key, spread in spreads.items()}


def _add_rounds(figure: go.Figure, repeated: RepeatedTiming, runs: tuple[RunName, ...], stages: list[Stage]) -> None:
    """Lines from the lowest to the highest round and a dot for each, the median's figure above them."""
    for run, bars in zip(runs, figure.data[: len(runs)], strict=True):
        spreads = [repeated.spread(run, stage) for stage in stages]
        bars.error_y = {
            "array": [None if spread is None else spread.highest - spread.median for spread in spreads],
            "arrayminus": [None if spread is None else spread.median - spread.lowest for spread in spreads],
            "color": RUN_COLOURS[run],
            "thickness": 1.5,
            "width": 5,
        }
        dots = [(stage, time) for stage in stages for time in repeated.times(run, stage)]
        figure.add_scatter(
            x=[_AXIS_NAMES[stage] for stage, _ in dots],
            y=[time for _, time in dots],
            offsetgroup=run,
            marker={"size": 5, "color": RUN_COLOURS[run]},
            showlegend=run == "full",
            **TRACES["round"],
        )
        figure.add_scatter(
            x=[_AXIS_NAMES[stage] for stage in stages],
            y=[None if spread is None else spread.highest for spread in spreads],
            text=[None if spread is None else _figure_of(spread.median) for spread in spreads],
            offsetgroup=run,
            **TRACES["median of rounds"],  # its marker keeps the figure clear of the line's end
        )
    figure.update_layout(scattermode="group")


def _figure_of(time: float | None) -> str:
    return milliseconds(time).removesuffix(" ms")
