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
