"""Every name under which transformers has models that take pictures, and what withdrawal is in each.

`python -m tests.every_name` tries them, each as a small random model against the oracles of `tests.oracles`, and writes
`vtw_demo/withdrawal/families.md`. `--check` writes nothing, prints where the table says something else, and fails if
that is of the same version of transformers, or wrong.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
import transformers as hf
from transformers.models.auto import modeling_auto

from tests.families import FAMILIES, LAYERS, Family
from tests.further_families import MORE, REFUSED
from tests.tiny_models import PROMPTS, compare, make
from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import NOT_UNDERSTOOD, check_family

TABLE = Path(__file__).parents[1] / "vtw_demo" / "withdrawal" / "families.md"
MAPPINGS = ("IMAGE_TEXT_TO_TEXT", "VIDEO_TEXT_TO_TEXT", "MULTIMODAL_LM", "ANY_TO_ANY")
PROMPTS_TRIED = ("one image", "several images", "ragged batch")
TRIED = {"gemma3": "gemma3 (window shorter than the prompt)"}
"""Names under which `tests.families` has another name."""

NOT_BUILT = "not tried"
HEAD = """# Models

What `withdraw` is in each name that transformers has for models of pictures, videos or anything: written by \
`.venv/bin/python -m tests.every_name`, which tries each as a small random model, with several pictures and in a \
batch, at K = 1, 2 and 3 of 4 layers, in prefill and greedy decoding.

- *exact*: the tokens are those of an oracle that shares nothing with it, and so are the logits, to 1e-4 of their \
standard deviation.
- *refused*: with this sentence, before anything runs.
- *not tried*: nobody has built a small model of it. It may work, or say at its first picture that it doesn't.
"""


def names() -> dict[str, str]:
    """The class of each model type in the mappings."""
    found: dict[str, str] = {}
    for mapping in MAPPINGS:
        found |= getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES", {})
    return dict(sorted(found.items()))


def outcome(name: str, model: str) -> str:
    known = FAMILIES | MORE
    if (family := known.get(TRIED.get(name, name))) is not None:
        return exactness(family)
    same = next((family for family in known.values() if family.model == model), None)
    if (refused := refusal(name, model)) is not None:
        return f"refused: {refused}"
    return NOT_BUILT if same is None else exactness(same)


def exactness(family: Family) -> str:
    tiny = make(family)
    compared = [compare(tiny, PROMPTS[kind], layer) for kind in PROMPTS_TRIED for layer in range(1, LAYERS)]
    worst = max(comparison.error for comparison in compared)
    is_exact = worst < 1e-4 and all(comparison.same_tokens for comparison in compared)
    return "exact" if is_exact else f"WRONG, by {worst:.0e} standard deviations"


def refusal(name: str, model: str) -> str | None:
    """The sentence that a model is refused with, one of the usual configuration if it needs no other; None if it isn't,
    or can't be built."""
    if (reason := NOT_UNDERSTOOD.get(name)) is not None:
        return f"{model} can't be used with withdraw: {reason}."
    try:
        model_class = getattr(hf, model)
        config = next((make for refused, make, _ in REFUSED.values() if refused == model), model_class.config_class)
        with torch.device("meta"):
            built = model_class(config())
    except Exception:  # many configurations have no defaults that fit each other
        return None
    try:
        check_family(built)
    except UserError as error:
        return str(error)
    return None


def rows() -> dict[str, str]:
    found = {}
    for name, model in names().items():
        try:
            found[name] = outcome(name, model)
        except Exception as error:
            traceback.print_exc()
            found[name] = f"FAILED: {type(error).__name__}"
        print(f"{name}: {found[name]}", file=sys.stderr)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the table; the result is 1 if a model is wrong or, checked, isn't as the table says."""
    parser = argparse.ArgumentParser(prog="python -m tests.every_name", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; print where the table says something else")
    options = parser.parse_args(arguments)
    found = rows()
    lines = [f"| {name} | {told} |" for name, told in found.items()]
    wrong = [line for line in lines if "WRONG" in line or "FAILED" in line]
    if options.check:
        told = TABLE.read_text(encoding="utf-8").splitlines()
        changed = [line for line in lines if line not in told]
        print("Not as in the table:" if changed else "All as in the table.", *changed, sep="\n")
        is_its_version = any(f"With transformers {version('transformers')}:" in line for line in told)
        return 1 if wrong or (changed and is_its_version) else 0
    counts = [
        f"{sum(told.startswith(kind) for told in found.values())} {kind}" for kind in ("exact", "refused", NOT_BUILT)
    ]
    summary = f"With transformers {version('transformers')}: {', '.join(counts)}, of {len(found)}."
    TABLE.write_text("\n".join([HEAD, summary, "", "| name | |", "|---|---|", *lines, ""]), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
