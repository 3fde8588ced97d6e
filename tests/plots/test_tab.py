import csv
import io

from vtw_demo.plots.tab import Table


def test_csv_gives_back_what_is_in_it():
    table = Table(("token", "share (%)"), (('a "b", c', 1.5), ("line\nbreak", None)))
    assert list(csv.reader(io.StringIO(table.to_csv()))) == [
        ["token", "share (%)"],
        ['a "b", c', "1.5"],
        ["line\nbreak", ""],
    ]
