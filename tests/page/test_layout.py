from vtw_demo.comparison.calibration import Calibration, CalibrationStore, Measurement
from vtw_demo.models.registry import EMBEDDED_LAYER, StartingLayer
from vtw_demo.page.build import build_page
from vtw_demo.page.layout import default_layer, layer_info
from vtw_demo.server.engine import Engine


def calibration(threshold):
    measured = Measurement((0.5, 0.1, 0.01, 0.02), None)
    return Calibration("m", "r", None, "float32", "usual", "tests", threshold, tuple("abc"), (measured,) * 3)


def test_the_slider_starts_with_the_calibrated_layer():
    known = StartingLayer(9, "three quarters of the layers")
    assert default_layer(known, None) == 9
    assert default_layer(known, calibration(0.05)) == 3
    assert default_layer(known, calibration(0.001)) == 3
    assert "Calibrated on 3 samples: K = 3" in layer_info(12, known, calibration(0.05))
    assert "nearest to the threshold, K = 3" in layer_info(12, known, calibration(0.001))
    assert "alibrated" not in layer_info(12, known, None)


def test_where_the_first_layer_comes_from_is_said():
    assert "K = 15: it is what the authors' code" in layer_info(32, StartingLayer(15, "authors' code"), None)
    said = layer_info(12, StartingLayer(9, "three quarters of the layers"), None)
    assert "K = 9: it is three quarters of the layers; not measured" in said


def slider(page):
    return next(block for block in page.blocks.values() if getattr(block, "elem_id", None) == "layer")


def test_the_page_starts_from_what_the_cache_folder_holds(vlm, tmp_path):
    store = CalibrationStore.of(vlm, tmp_path)
    assert slider(build_page(Engine(vlm, store))).value == EMBEDDED_LAYER
    store.keep_result(calibration(0.05))
    calibrated = slider(build_page(Engine(vlm, store)))
    assert calibrated.value == 3
    assert "Calibrated on 3 samples" in calibrated.info
    assert slider(build_page(Engine(vlm, store), first_layer=7)).value == 7
    store.result_file.write_text('{"model": 1}')
    assert slider(build_page(Engine(vlm, store))).value == EMBEDDED_LAYER
