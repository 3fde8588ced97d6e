"""The demo's page: a reader of the library that shows one comparison at a time. It never touches torch itself."""

import vtw_demo.server  # noqa: F401  # first: it leaves out what Gradio's import needn't do
