"""Columns as plain data: what a saved one must hold is said by name."""

from __future__ import annotations

import pytest

from trifold.data import columns
from trifold.errors import FormatError


@pytest.mark.parametrize(("part", "value", "needed"), [("scale", 0.0, "a finite number above 0"), ("mean", "1", "a finite number;")])
def test_a_saved_number_says_which_part_is_wrong_and_what_it_must_be(part, value, needed):
    spec = {**columns.to_spec(columns.Number("dose", 1.0, 2.0)), part: value}
    with pytest.raises(FormatError, match=f"{part} of column 'dose' must be {needed}"):
        columns.from_spec(spec)
