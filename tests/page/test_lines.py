from vtw_demo.page.lines import header, problem_line, reading_line, verdict_line


def test_whatever_is_shown_is_escaped():
    assert "<i>" not in header("<i>", "float32", "cpu", 12, None)
    for line in (problem_line, reading_line, verdict_line):
        assert "&lt;script&gt;" in line("<script>")


def test_the_header_names_what_runs():
    shown = header("embedded", "4-bit", "cpu", 12, 196)
    for fact in ("model embedded", "4-bit", "cpu", "12 decoder layers", "196 visual tokens"):
        assert fact in shown
    assert "visual tokens" not in header("embedded", "4-bit", "cpu", 12, None)


def test_the_header_says_what_the_embedded_model_is_for():
    assert "coloured shapes only, and no photos" in header("embedded", "float32", "cpu", 12, None)
    assert "photos" not in header("llava-hf/llava-1.5-7b-hf", "4-bit", "cuda", 32, None)
