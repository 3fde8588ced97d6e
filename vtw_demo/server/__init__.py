"""The one model behind the page: whose turn it is, who may come in, what is said when it fails."""

from vtw_demo.server.gradio_import import leave_out_type_stubs

leave_out_type_stubs()  # before any module imports gradio
