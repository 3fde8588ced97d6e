import csv
import io

import pytest

from vtw_demo.plots.table import Table


def test_csv_gives_back_what_is_in_it():
    table = Table(("token", "share (%)"), (('a "b", c', 1.5), ("line\nbreak", None)))
    assert list(csv.reader(io.StringIO(table.to_csv()))) == [
        ["token", "share (%)"],
        ['a "b", c', "1.5"],
        ["line\nbreak", ""],
    ]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="1 cells"):
        Table(("a", "b"), ((1,),))
