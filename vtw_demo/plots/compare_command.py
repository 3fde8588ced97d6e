"""`python -m vtw_demo compare`: one question answered twice, and what explains it as a report."""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.comparison.compare import Comparison, compare_prompt
from vtw_demo.comparison.machine import this_machine
from vtw_demo.comparison.repeated_timing import repeat_timing
from vtw_demo.files import check_writable, write_whole
from vtw_demo.models.arguments import add_model_arguments, add_options, load_model
from vtw_demo.models.image import open_file, open_picture
from vtw_demo.models.video import is_clip
from vtw_demo.plots.report import report_data, report_html


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_options(parser, Path(__file__).with_name("compare_options.toml"))


def run(options: argparse.Namespace) -> int:
    for file in (options.report, options.json):
        check_writable(file)
    # A picture before the model, which would be loaded for nothing; how a clip is read depends on the model.
    open_file(options.image).close()
    shown = options.image if is_clip(options.image) else open_picture(options.image)
    vlm = load_model(options)
    prompt = vlm.prompt(shown, options.question)
    events = compare_prompt(vlm, prompt, options.layer, options.max_new_tokens, beside=options.beside)
    *_, comparison = tqdm(events, desc="answering twice", unit="token", disable=None, leave=False)
    assert isinstance(comparison, Comparison)
    print(f"every layer sees the picture:     {comparison.full.answer}")
    print(f"visual tokens withdrawn at {options.layer:>2}:    {comparison.withdrawn.answer}")
    if comparison.beside is not None:
        print(f"{'beside it, by ' + str(comparison.recipe) + ':':<34}{comparison.beside.answer}")
    analysis, calibration = Analysis(vlm, prompt, comparison), CalibrationStore.of(vlm).result()
    if options.rounds:
        timings = repeat_timing(vlm, prompt, options.layer, analysis.longest, options.rounds)
        for timing in tqdm(timings, desc="timing", total=options.rounds, unit="round", disable=None, leave=False):
            analysis.timing = timing
    print(analysis.verdict)
    if options.report:
        write_whole(options.report, report_html(analysis, calibration, this_machine()).encode())
        print(options.report)
    if options.json:
        data = report_data(analysis, calibration, this_machine())
        write_whole(options.json, json.dumps(data, indent=1).encode())
        print(options.json)
    return 0
