"""`python -m vtw_demo COMMAND`: `python -m vtw_demo --help` lists the commands."""

import argparse
import sys
from collections.abc import Sequence

from vtw_demo.commands import bench, calibrate, compare, evaluate, loadtest, models, space


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the result is the exit code: 2 where it can't do what it was asked for, 130 after Ctrl+C."""
    parser = argparse.ArgumentParser(prog="python -m vtw_demo", description="Visual Tokens Withdrawal from the shell.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (compare, calibrate, evaluate, models, space, bench, loadtest):
        command = commands.add_parser(
            module.__name__.rsplit(".", 1)[-1],
            help=module.HELP,
            description=module.DESCRIPTION,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
