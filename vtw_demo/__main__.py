"""`python -m vtw_demo COMMAND`: `python -m vtw_demo --help` lists the commands."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from vtw_demo.errors import UserError
from vtw_demo.files import data_beside

STOPPED = 130
COMMANDS = data_beside(__file__, "commands.toml")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """With the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the result is the exit code: 2 where it can't do what it was asked for, 130 after Ctrl+C."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m vtw_demo", description="Visual Tokens Withdrawal from the shell.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    try:
        for name, told in COMMANDS.items():
            texts = {"help": told["help"], "description": told["description"]}
            command = commands.add_parser(name, **texts, formatter_class=HelpFormatter)
            if name in given[:1]:
                module = _command(name, told["module"])
                module.add_arguments(command)
                command.set_defaults(run=module.run)
        options = parser.parse_args(given)
        return options.run(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return STOPPED


def _command(name: str, module: str) -> Any:
    try:
        return import_module(f"vtw_demo.{module}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"The command {name} needs the package {error.name}, which isn't installed: install this project with its "
            "extra `demo` (pip install '.[demo]')."
        ) from error


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal can't show is no reason to lose the rest
        sys.stdout.reconfigure(errors="backslashreplace")
    code = main()
    if code == STOPPED:  # what the model's thread has in hand, minutes of it perhaps, would be waited for
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
