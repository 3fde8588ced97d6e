"""`python -m vtw_demo compare`: one question answered twice, and what explains it as a report."""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.comparison.compare import Comparison, ask_on, compare_prompt, turns_of
from vtw_demo.comparison.follow_up import FollowUp
from vtw_demo.comparison.machine import this_machine
from vtw_demo.comparison.repeated_timing import repeat_timing
from vtw_demo.files import check_writable, write_whole
from vtw_demo.models.arguments import add_model_arguments, add_options, load_model
from vtw_demo.models.image import open_file, open_picture
from vtw_demo.models.question import read_question
from vtw_demo.models.video import is_clip
from vtw_demo.plots.report import report_data, report_html
from vtw_demo.plots.second_question import second_question_reading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_options(parser, Path(__file__).with_name("compare_options.toml"))


def run(options: argparse.Namespace) -> int:
    for file in (options.report, options.json):
        check_writable(file)
    # Before the model, which would be loaded for nothing; how a clip is read depends on the model.
    open_file(options.image).close()
    if options.then is not None:
        read_question(options.then)
    shown = options.image if is_clip(options.image) else open_picture(options.image)
    vlm = load_model(options)
    prompt = vlm.prompt(shown, options.question)
    events = compare_prompt(vlm, prompt, options.layer, options.max_new_tokens, beside=options.beside)
    *_, comparison = tqdm(events, desc="answering twice", unit="token", disable=None, leave=False)
    assert isinstance(comparison, Comparison)
    print(f"every layer sees the picture:     {comparison.full.answer}")
    print(f"visual tokens withdrawn at {comparison.layer:>2}:    {comparison.withdrawn.answer}")
    if comparison.layer_is_automatic:
        print(f"layer {comparison.layer} was chosen by the prefill")
    if comparison.beside is not None:
        print(f"{'beside it, by ' + str(comparison.recipe) + ':':<34}{comparison.beside.answer}")
    analysis, calibration = Analysis(vlm, prompt, comparison), CalibrationStore.of(vlm).result()
    if options.rounds:
        asked = prompt, options.layer, analysis.longest, options.rounds
        timings = repeat_timing(vlm, *asked, recipe=comparison.recipe)
        for timing in tqdm(timings, desc="timing", total=options.rounds, unit="round", disable=None, leave=False):
            analysis.timing = timing
    print(analysis.verdict)
    if options.then is not None:
        turns = turns_of(comparison, comparison.layer)
        *_, found = ask_on(vlm, prompt, turns, options.then, comparison.layer, options.max_new_tokens)
        assert isinstance(found, FollowUp)
        analysis.follow_up = found
        for name, answer in (("full", found.full), (f"withdrawn at {comparison.layer}", found.withdrawn)):
            print(f"{name + ', goes on with its cache:':<42}{answer.answer}")
        print(f"{'full, reads all of it again:':<42}{found.fresh.answer}\n{second_question_reading(found)}")
    if options.report:
        write_whole(options.report, report_html(analysis, calibration, this_machine()).encode())
        print(options.report)
    if options.json:
        data = report_data(analysis, calibration, this_machine())
        write_whole(options.json, json.dumps(data, indent=1).encode())
        print(options.json)
    return 0
