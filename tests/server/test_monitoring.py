"""Health, metrics and the log."""

import logging
import threading

import httpx
import pytest
from gradio_client import Client, handle_file
from prometheus_client.parser import text_string_to_metric_families

from tests.serving import served
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.page.examples import load_examples
from vtw_demo.server.engine import Engine
from vtw_demo.server.monitoring import Monitoring, OneLine
from vtw_demo.server.query import Query

QUESTION = "Which secret\nis it?"


def metrics(address):
    answer = httpx.get(f"{address}/metrics", trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_a_server_is_ready_until_it_closes(vlm, tmp_path):
    engine = Engine(vlm, CalibrationStore(tmp_path))
    with served(engine) as address:
        ready = httpx.get(f"{address}/health", trust_env=False)
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
        engine.close()
        closing = httpx.get(f"{address}/health", trust_env=False)
        assert (closing.status_code, closing.json()) == (503, {"status": "closing"})


def test_metrics_count_runs_and_know_the_model(vlm, tmp_path):
    with served(Engine(vlm, CalibrationStore(tmp_path))) as address:
        before = metrics(address)
        assert before["vtw_model", ("model", "embedded"), ("precision", "float32")] == 1
        assert before["vtw_queue_length",] == 0
        assert before["process_resident_memory_bytes",] > 10**8
        Client(address, verbose=False).predict(
            handle_file(load_examples()[0].picture), QUESTION, 6, 4, api_name="/compare"
        )
        after = metrics(address)
    assert after["vtw_runs_total", ("kind", "comparison"), ("outcome", "done")] == 1
    assert after["vtw_run_seconds_count", ("kind", "comparison")] == 1
    assert after["vtw_run_seconds_sum", ("kind", "comparison")] > 0
    assert after["vtw_wait_seconds_count", ("kind", "comparison")] == 1


@pytest.mark.parametrize("log_questions", [False, True])
def test_the_log_has_a_line_for_each_event_and_no_question_unless_asked(vlm, picture, tmp_path, caplog, log_questions):
    monitoring = Monitoring(log_questions)
    engine = Engine(vlm, CalibrationStore(tmp_path), monitoring=monitoring)
    with caplog.at_level(logging.INFO):
        engine.compare_to_end("a", vlm, Query(picture, QUESTION, 6, 4), threading.Event())
        monitoring.fault_of(failure(KeyError(QUESTION)))
        monitoring.fault_of(failure(ValueError(QUESTION)))
    lines = [OneLine("%(levelname)s %(message)s").format(record) for record in caplog.records]
    assert any(line.startswith("INFO comparison: done after ") for line in lines)
    assert any(line.startswith("ERROR failed: KeyError") and "test_monitoring.py" in line for line in lines)
    assert not any("\n" in line for line in lines)
    assert any("secret" in line for line in lines) == log_questions


def failure(error):
    try:
        raise error
    except Exception as raised:
        return raised


def test_a_traceback_is_one_line_too(caplog):
    try:
        raise KeyError("one\ntwo")
    except KeyError:
        logging.getLogger("any").exception("three\nfour")
    line = OneLine("%(message)s").format(caplog.records[-1])
    assert "\n" not in line
    assert line.startswith("three | four | Traceback")
