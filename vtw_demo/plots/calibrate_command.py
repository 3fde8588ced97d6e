"""`python -m vtw_demo calibrate`: the withdrawal layer for a model, from a few samples."""

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from vtw_demo.comparison.calibration import (
    DEFAULT_SAMPLES,
    DEFAULT_THRESHOLD,
    CalibrationProgress,
    CalibrationStore,
    calibrate,
)
from vtw_demo.comparison.data_rows import FILES, Columns, add_data_arguments, chosen_columns
from vtw_demo.comparison.samples import EMBEDDED_DATA, embedded_samples, read_samples
from vtw_demo.errors import UserError
from vtw_demo.formats import filled
from vtw_demo.models.arguments import add_model_arguments, add_options, load_model
from vtw_demo.plots.divergence import divergence_figure
from vtw_demo.plots.images import write_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--data", help=f"{FILES}; without it, {EMBEDDED_DATA}")
    add_data_arguments(parser, ("image", "question"), "train")
    samples, threshold = {"default": DEFAULT_SAMPLES}, {"default": DEFAULT_THRESHOLD}
    table = Path(__file__).with_name("calibrate_options.toml")
    add_options(parser, table, samples=samples, threshold=threshold)


def run(options: argparse.Namespace) -> int:
    if options.data is None:
        if options.answer_tokens != 1 or chosen_columns(options) != Columns():
            raise UserError("--answer-tokens and the options of columns are for --data: give both, or neither.")
        samples, data = embedded_samples(options.samples), EMBEDDED_DATA
    else:
        data, columns = options.data, chosen_columns(options)
        more = {"answer_tokens": options.answer_tokens, "split": options.split, "config": options.config}
        samples, _ = read_samples(data, options.samples, options.strict, columns=columns, **more)
    vlm = load_model(options)
    store = CalibrationStore.of(vlm)
    calibration = None
    try:
        with tqdm(total=len(samples), desc="calibrating", unit="sample") as bar:
            for event in calibrate(vlm, samples, options.threshold, data, store, strict=options.strict):
                if isinstance(event, CalibrationProgress):
                    bar.total = event.samples
                    bar.update(event.measured - bar.n)
                else:
                    calibration = event
    except KeyboardInterrupt:
        kept = store.problem or "What was measured is kept: the same command goes on there."
        print(f"Stopped. {kept}", file=sys.stderr)
        return 130
    assert calibration is not None
    print(filled(Path(__file__).with_name("calibration.txt"), calibration=calibration))
    figure = divergence_figure(None, calibration)
    contents = {
        "calibration.json": json.dumps(calibration.to_json(), indent=1),
        "calibration.html": figure.to_html(include_plotlyjs=True),
    }
    figure.update_layout(title={"text": calibration.model, "font": {"size": 14}})
    write_results(options.out or store.folder, contents, {"calibration.png": figure})
    if store.problem:
        raise OSError(store.problem)
    return 0
