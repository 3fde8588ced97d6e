import multiprocessing
import threading

import pytest

from vtw_demo.models.devices import on_model_thread, start_on_model_thread


def name_of_thread():
    return threading.current_thread().name


def test_all_callers_work_on_the_same_thread():
    names = {on_model_thread(name_of_thread)}
    callers = [threading.Thread(target=lambda: names.add(on_model_thread(name_of_thread))) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    names.add(start_on_model_thread(name_of_thread).result())
    assert len(names) == 1
    assert names != {name_of_thread()}


def test_what_is_on_the_thread_goes_on_there():
    assert on_model_thread(on_model_thread, name_of_thread) == on_model_thread(name_of_thread)
    with pytest.raises(RuntimeError, match="wait for what it has to do itself"):
        on_model_thread(start_on_model_thread, name_of_thread)


def test_errors_come_through_and_arguments_go_in():
    with pytest.raises(ValueError, match="invalid literal"):
        on_model_thread(int, "x")
    assert on_model_thread(int, "11", base=2) == 3


def forked(results):
    results.put(on_model_thread(int, "7"))


def test_a_forked_process_has_a_thread_of_its_own():
    on_model_thread(name_of_thread)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=forked, args=(results,))
    process.start()
    try:
        assert results.get(timeout=30) == 7
    finally:
        process.terminate()
        process.join()
