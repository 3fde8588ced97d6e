import pytest

from vtw_demo.comparison.analysis import Examination, FullExamination
from vtw_demo.comparison.compare import compare

QUESTION = "Describe the <b>picture</b>."


@pytest.fixture(scope="session")
def examination(vlm, picture):
    *_, comparison = compare(vlm, picture, QUESTION, 4, max_new_tokens=12)
    return Examination(FullExamination(vlm, picture, QUESTION, comparison.full), comparison)
