"""The demo's page: a reader of the library that shows one comparison at a time. It never touches torch itself."""

import os

import vtw_demo.server  # noqa: F401  # first: it leaves out what Gradio's import needn't do

# It reads some of its variables when it is imported, and fails on what it can't read.
_variables = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("GRADIO_")}
import gradio.http_server  # noqa: E402, F401

os.environ.update(_variables)
