"""`python -m vtw_demo COMMAND`: `python -m vtw_demo --help` lists the commands."""

import argparse
import sys
from collections.abc import Sequence

from vtw_demo.benchmark import command as bench
from vtw_demo.benchmark import load_test as loadtest
from vtw_demo.errors import UserError
from vtw_demo.evaluation import command as evaluate
from vtw_demo.models import command as models
from vtw_demo.plots import calibrate_command as calibrate
from vtw_demo.plots import compare_command as compare
from vtw_demo.server import space_command as space


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the result is the exit code: 2 where it can't do what it was asked for, 130 after Ctrl+C."""
    parser = argparse.ArgumentParser(prog="python -m vtw_demo", description="Visual Tokens Withdrawal from the shell.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    modules = {
        "compare": compare,
        "calibrate": calibrate,
        "evaluate": evaluate,
        "models": models,
        "space": space,
        "bench": bench,
        "loadtest": loadtest,
    }
    for name, module in modules.items():
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
