"""Starts the demo's page: `python app.py --help`."""

import sys

from vtw_demo.page.command_line import main

if __name__ == "__main__":
    sys.exit(main())
