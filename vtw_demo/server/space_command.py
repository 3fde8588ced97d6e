"""`python -m vtw_demo space`: the Hugging Face Space of the demo, checked and sent."""

import argparse
import tomllib
from pathlib import Path

from vtw_demo.files import write_whole
from vtw_demo.formats import amount, count
from vtw_demo.server.space import LARGEST_PLAIN_FILE, README, Checkout, check_space, push_space
from vtw_demo.server.spacefile import HARDWARE, read_spacefile, with_front_matter

ROOT = Path(__file__).resolve().parents[2]
NOT_IN_ORDER = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    table = tomllib.loads(Path(__file__).with_name("space_actions.toml").read_text(encoding="utf-8"))
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
    checkout = check_space(options.folder)
    for path, size in checkout.sizes.items():
        remarks = ["large file storage"] if size > LARGEST_PLAIN_FILE else []
        remarks += ["not added to git"] if checkout.has_history and path in checkout.untracked else []
        print(f"{amount(size, 'B'):>8}  {path}" + (f"  ({', '.join(remarks)})" if remarks else ""))
    print(f"{amount(checkout.total_bytes, 'B'):>8}  in {count(len(checkout.sizes), 'file')} would be sent.")
    if not checkout.has_history:
        print("There is no .git here: what would not be sent is what the .gitignore files name.")
    print(_problems(checkout) if checkout.problems else "Nothing is wrong.")
    return NOT_IN_ORDER if checkout.problems else 0


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
