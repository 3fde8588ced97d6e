"""`python -m vtw_demo COMMAND`: `python -m vtw_demo --help` lists the commands."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from vtw_demo.errors import UserError

STOPPED = 130
# The module of each command, which is imported when it is asked for: some need packages of the extra `demo`.
COMMANDS = {
    "compare": ("plots.compare_command", "answer one question twice, with and without withdrawal"),
    "calibrate": ("plots.calibrate_command", "choose the withdrawal layer K for a model"),
    "evaluate": ("evaluation.command", "measure on data whether withdrawal keeps the quality of a model's answers"),
    "models": ("models.command", "list the models that are known to work"),
    "space": ("server.space_command", "check and send the Hugging Face Space"),
    "bench": ("benchmark.command", "measure what withdrawal saves, and what this library's own passes cost"),
}


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
        for name, (module_name, help_) in COMMANDS.items():
            command = commands.add_parser(name, help=help_, formatter_class=HelpFormatter)
            if name in given[:1]:
                module = _command(name, module_name)
                command.description = module.DESCRIPTION
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
