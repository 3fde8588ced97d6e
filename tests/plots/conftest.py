import pytest

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.compare import compare_prompt

QUESTION = "Describe the <b>picture</b>."


@pytest.fixture(scope="session")
def analysis(vlm, picture):
    prompt = vlm.prompt(picture, QUESTION)
    *_, comparison = compare_prompt(vlm, prompt, 4, max_new_tokens=12)
    return Analysis(vlm, prompt, comparison)
