"""What the tests with Ray ask: a small model, and what it answers in this process."""

import json
import shutil

import pytest

from vtw_demo.comparison.compare import compare
from vtw_demo.models.loading import ModelChoice, load_choice
from vtw_demo.server.query import Query

QUESTION, LAYER, NEW_TOKENS = "What is shown?", 2, 48


@pytest.fixture(scope="module")
def choice(small_folder, tmp_path_factory):
    """The small model, but that it answers at length: there is time to kill it."""
    folder = tmp_path_factory.mktemp("lengthy") / "model"
    shutil.copytree(small_folder, folder)
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": 2}))
    return ModelChoice(str(folder), device="cpu")


@pytest.fixture(scope="module")
def small(choice):
    return load_choice(choice)


@pytest.fixture
def query(picture):
    return Query(picture, QUESTION, LAYER, NEW_TOKENS)


@pytest.fixture(scope="module")
def alone(small, picture):
    """The same comparison in this process."""
    *_, comparison = compare(small, picture, QUESTION, LAYER, NEW_TOKENS)
    assert len(comparison.full.tokens) > 10
    return comparison
