"""The demo's page: a reader of the library that shows one comparison at a time. It never touches torch itself."""

from vtw_demo.page.gradio_import import leave_out_type_stubs

leave_out_type_stubs()  # before any module of the page imports gradio
