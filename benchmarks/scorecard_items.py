"""The sixty items of the reliability scorecard: number, fault, what trifold does, and how many faults a test holds that repeats one."""

from __future__ import annotations

import re

ITEMS = {
    1: "one NaN among the counts",
    2: "one infinite value",
    3: "one negative count",
    4: "negative values under a Gaussian likelihood",
    5: "fractional values in 1 % of the rows",
    6: "log-normalised values given as counts",
    7: "scaled values given as counts",
    8: "a cell without a count",
    9: "a gene without a count",
    10: "a constant gene",
    11: "counts of 1e7, library above 2^24",
    12: "counts in float16",
    13: "whole dtypes, object dtype",
    14: "complex or text matrix",
    15: "CSR with an index outside the matrix",
    16: "CSR with pointers that decrease or do not fit",
    17: "unsorted and repeated indices",
    18: "every form of matrix, bit-equal latents",
    19: "more than 2^31 stored values",
    20: "memory layouts: Fortran, read-only, big-endian",
    21: "backed h5ad, zarr and memory agree in order",
    22: "a view leaves its parent unchanged",
    23: "no cells, no genes",
    24: "one cell, one gene",
    25: "genes whose names repeat",
    26: "cells whose names repeat",
    27: "genes permuted at prediction",
    28: "genes missing at prediction",
    29: "extra genes at prediction",
    30: "Ensembl identifiers against symbols",
    31: "a category not seen in training",
    32: "an unused category",
    33: "NaN in a category",
    34: "NaN or inf in a continuous covariate",
    35: "integer, boolean and mixed categories on reload",
    36: "odd names: not UTF-8, long, newline, slash",
    37: "a condition of one cell",
    38: "a condition absent from a split",
    39: "one condition only",
    40: "confounded covariates",
    41: "a key that is missing or has two roles",
    42: "a last minibatch of one cell",
    43: "NaN in a loss or gradient at step k",
    44: "a learning rate of 1000",
    45: "Ctrl-C and SIGTERM",
    46: "kill -9 during checkpoint writing, 100 times",
    47: "a full disk",
    48: "a folder that is read-only or gone",
    49: "two processes that save to one path",
    50: "a loader that dies",
    51: "too little memory to densify or embed at once",
    52: "a GPU that is not there",
    53: "model files truncated at every 1 %",
    54: "one flipped byte in a model file",
    55: "weights that do not fit",
    56: "configuration: unknown keys, wrong types, newer format",
    57: "a planted pickle",
    58: "path traversal, symbolic link, device file",
    59: "h5ad with external storage or links",
    60: "shape, zip and gzip bombs",
}

# What trifold does about each, as its tests ask for.
ANSWERS = {
    1: "`DataError` before training: layer, cell, gene, how many",
    2: "the same",
    3: "`DataError` by cell and gene",
    4: "accepted",
    5: '`DataError` with the share and the first; `fractional="allow"` accepts',
    6: "`DataError` with the hint that it looks like log1p",
    7: "`DataError` with the hint that it looks scaled",
    8: '`DataError` with the cells; `empty="drop"` or `"keep"`',
    9: "a warning with the names; everything stays finite",
    10: "trains, everything finite",
    11: "exact library size, finite loss",
    12: "`DataError`: float16 holds no count above 65,504",
    13: "whole and boolean dtypes are taken; object: `DtypeError`",
    14: "`DtypeError` (a `TypeError`) that names it",
    15: "`DataError` that names the indices; compiled code never sees them",
    16: "`DataError` that names the pointers",
    17: "read as if sorted and summed; the input stays as it is",
    18: "CSC, CSR, COO, arrays, DataFrame: the same latents, bit for bit",
    19: "no wrap of row pointers",
    20: "the same result, input unchanged",
    21: "the same latents, in the order asked for",
    22: "the parent is unchanged",
    23: "an error that names the axis",
    24: "predict works; fit names the least that it needs",
    25: "`DataError` that lists them",
    26: "a warning; order kept",
    27: "put in order by name: the identical result",
    28: '`DataError` with number and names; `missing="zero"` accepts and says so',
    29: "left out, with a notice",
    30: "`DataError`: none match, and what the names look like",
    31: "`SchemaError` with column, value and known values; `unknown=` per role",
    32: "ignored and recorded",
    33: "`SchemaError` with column and number of cells",
    34: "`SchemaError` that names the column",
    35: "the same order and type after a reload",
    36: "a round trip, or an error that names the column",
    37: "its MMD is left out with a notice; finite loss",
    38: "left out; never a mean of nothing",
    39: "MMD 0, with one notice",
    40: "a warning that says what cannot be told apart, with the table",
    41: "`SchemaError` that lists what there is",
    42: "joined to the one before",
    43: "`TrainingError` with step and term; finite weights put back, checkpoint kept",
    44: "the same, within ten steps",
    45: "the step is finished, a checkpoint written, exit code 130 or 143; `resume=True` ends at the same bits",
    46: "the newest or the previous checkpoint loads, whole",
    47: "`CheckpointError` with path, needed and free; the old file intact, no litter",
    48: "`CheckpointError` before training",
    49: "one of them wins, whole",
    50: "an error, no hang, nothing left running",
    51: "done in pieces",
    52: "`DeviceError` that names it; never the CPU instead",
    53: "`CorruptModelError` that names the file",
    54: "refused by its hash",
    55: "`FormatError` with the names, before memory is taken",
    56: "`FormatError` that names the key; newer: the trifold that it needs",
    57: "refused, nothing run",
    58: "refused",
    59: "`DataError` that names the link",
    60: "`DataError` from what the file says of itself, under 100 MB used",
}

GROUPS = {"A. Counts and matrices": (1, 22), "B. Shapes, names, categories": (23, 42), "C. Training": (43, 52), "D. Files": (53, 60)}

# Tests that cause one fault many times: start of their name -> a lower bound of the number of faults. Item (d) allows 5 s for each.
REPEATED = {
    "test_item_46_kills": 8,
    "test_item_49_of_many": 80,
    "test_item_49_processes": 40,
    "test_item_53_every_truncation": 100,
    "test_item_54_ten_thousand": 10_000,
    "test_item_54_one_flipped": 200,
    "test_item_60_bombs": 42,
}

_NUMBERS = re.compile(r"test_items?_(\d\d(?:_(?:and_|to_)?\d\d)*)")


def items_of(test: str) -> list[int]:
    """Numbers of the items that a test is for: 9 and 10 for ``test_items_09_and_10_...``; none for other tests."""
    found = _NUMBERS.match(test)
    if found is None:
        return []
    out: list[int] = []
    through = False
    for word in found[1].split("_"):
        if word == "to":
            through = True
        elif word.isdigit():
            out += range(out[-1] + 1, int(word) + 1) if through else [int(word)]
            through = False
    return out


def repeats(test: str) -> int:
    """How many faults a test causes one after the other."""
    return next((n for start, n in REPEATED.items() if test.startswith(start)), 1)


def chosen(text: str) -> list[int]:
    """Item numbers of ``"1-42,57"``; all sixty of an empty text."""
    out: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        out |= set(range(int(first), int(last or first) + 1))
    return sorted((out or set(ITEMS)) & set(ITEMS))
