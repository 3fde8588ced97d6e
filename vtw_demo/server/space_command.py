"""`python -m vtw_demo space`: the Hugging Face Space of the demo, checked and sent."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtw_demo.files import data_beside, write_whole
from vtw_demo.formats import amount, count, filled
from vtw_demo.models.loading import KERNEL_BYTES, MEMORY_SHARE
from vtw_demo.models.registry import find_known_model, suggested
from vtw_demo.server.space import LARGEST_PLAIN_FILE, README, Checkout, check_space, push_space
from vtw_demo.server.spacefile import HARDWARE, read_spacefile, with_front_matter

ROOT = Path(__file__).resolve().parents[2]
NOT_IN_ORDER = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    table = data_beside(__file__, "space_actions.toml")
    check, readme, push = (actions.add_parser(name, **told) for name, told in table.items())
    push.add_argument("--repo", required=True, metavar="USER/NAME", help="the Space, created where there is none")
    push.add_argument("--private", action="store_true", help="let only its owner see it")
    push.add_argument("--hardware", choices=HARDWARE, metavar="FLAVOR", help=f"what it runs on: {', '.join(HARDWARE)}")
    for action, does in ((check, _check), (readme, _write_readme), (push, _push)):
        action.add_argument("--folder", type=Path, default=ROOT, help="the checkout; by default the one this runs from")
        action.set_defaults(does=does)


def run(options: argparse.Namespace) -> int:
    return options.does(options)


def _check(options: argparse.Namespace) -> int:
    checkout, template = check_space(options.folder), Path(__file__).with_name("space_check.txt")
    large = {path for path, size in checkout.sizes.items() if size > LARGEST_PLAIN_FILE}
    print(filled(template, checkout=checkout, large=large, runs=_what_runs()))
    print(_problems(checkout) if checkout.problems else "Nothing is wrong.")
    return NOT_IN_ORDER if checkout.problems else 0


def _what_runs() -> Iterator[str]:
    for found in data_beside(__file__, "space_hardware.json"):
        said = found.get("says")
        if said is None:
            row: Any = suggested(found["device"], round(found["gigabytes"] * 1e9))
            known: Any = find_known_model(row.name)
            is_cpu = found["device"] == "cpu"
            weights = known.memory_4bit if row.quantization else known.parameters * (4 if is_cpu else 2)
            needed = weights * MEMORY_SHARE + (0 if is_cpu else KERNEL_BYTES)
            held = "in 4 bits" if row.quantization else "in float32 at most" if is_cpu else "in bfloat16"
            said = f"{known.title} {held}, about {amount(needed, 'B')} of {found['gigabytes']} GB"
        yield f"{found['hardware']:>12}  {said}"


def _write_readme(options: argparse.Namespace) -> int:
    description, path = read_spacefile(options.folder), options.folder / README
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    after = with_front_matter(before, description)
    if after == before:
        print(f"{path} says already what the Spacefile does.")
    else:
        write_whole(path, after.encode())
        print(f"Wrote the front matter of {path}.")
    return 0


def _push(options: argparse.Namespace) -> int:
    checkout = check_space(options.folder)
    if checkout.problems:
        print(f"{_problems(checkout)}\nNothing was sent.")
        return NOT_IN_ORDER
    for step in push_space(checkout, options.repo, options.private, options.hardware):
        print(step, flush=True)
    return 0


def _problems(checkout: Checkout) -> str:
    return "\n- ".join([f"{count(len(checkout.problems), 'thing')} to put right:", *checkout.problems])
