"""In a process of its own: an import can be watched only once."""

import subprocess
import sys

WATCH = """
import ast, sys
parsed, parse = [], ast.parse
def watched(*args, **options):
    parsed.append(sys._getframe(1).f_code.co_filename.endswith("component_meta.py"))
    return parse(*args, **options)
ast.parse = watched
{before}
import gradio as gr
count = sum(parsed)
with gr.Blocks() as page:
    slider, text = gr.Slider(1, 12, step=1), gr.Textbox()
    slider.change(lambda value: value, slider, text, api_name="echo")
assert page.get_api_info()["named_endpoints"]["/echo"]
print(count)
"""


def parsed(before: str) -> int:
    command = [sys.executable, "-c", WATCH.format(before=before)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_no_stub_is_made_and_components_have_their_events():
    assert parsed("") > 20
    for room in ("server", "page"):
        assert parsed(f"import vtw_demo.{room}") == 0
