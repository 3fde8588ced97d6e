import pytest

from tests import golden


@pytest.fixture(scope="module")
def golden_model():
    return golden.build_model()


@pytest.fixture(scope="module")
def golden_inputs():
    return golden.inputs()
