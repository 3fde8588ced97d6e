"""The calibration's curve as a PNG file, drawn without a browser."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from vtw_demo.comparison.calibration import Calibration
from vtw_demo.plots.divergence import CURVE_COLOUR, FLOOR, FLOPS_COLOUR
from vtw_demo.plots.style import RUN_COLOURS


def divergence_png(calibration: Calibration) -> bytes:
    """Mean divergence by K with the samples' spread, threshold, chosen K, and the share of FLOPs left."""
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    layers = calibration.layers
    low, high = ([max(FLOOR, value) for value in calibration.quantile(share)] for share in (0.1, 0.9))
    axes.fill_between(layers, low, high, color=CURVE_COLOUR, alpha=0.18, linewidth=0, label="80 % of the samples")
    mean = [max(FLOOR, value) for value in calibration.mean]
    axes.plot(layers, mean, "o-", color=CURVE_COLOUR, label=f"mean of {len(calibration.samples)} samples")
    axes.axhline(calibration.threshold, color=CURVE_COLOUR, linestyle=":", label=f"threshold {calibration.threshold:g}")
    chosen = "first K under it" if calibration.layer else "nearest K"
    axes.axvline(
        calibration.nearest_layer,
        color=RUN_COLOURS["withdrawn"],
        linestyle="--",
        label=f"{chosen}: {calibration.nearest_layer}",
    )
    axes.set(yscale="log", xlabel="withdrawal layer K", ylabel="KL divergence, natural log", title=calibration.model)
    axes.set_xticks(layers if len(layers) <= 16 else layers[:: max(1, len(layers) // 8)])
    axes.grid(alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    if calibration.flops_left is not None:
        right = axes.twinx()
        shares = [100 * share for share in calibration.flops_left]
        handles += right.plot(layers, shares, "-.", color=FLOPS_COLOUR)
        labels.append("FLOPs left (right axis)")
        right.set(ylabel="prefill FLOPs left, %", ylim=(0, 100))
    axes.legend(handles, labels, fontsize=8, loc="lower left")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
