"""The one model behind the page: whose turn it is, who may come in, what is said when it fails."""

import vtw_demo.server.gradio_import  # noqa: F401  # before any module imports gradio
