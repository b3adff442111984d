"""Bytes that HDF5 asks for in a damaged file, and claims that are larger than a float."""

from __future__ import annotations

import io
import struct

import pytest

from trifold.data import preflight
from trifold.data.watched import WatchedFile
from trifold.errors import DataError


def heap(*lengths: int, size: int = 4096) -> bytes:
    """A collection of text with entries of these lengths, and the rest free."""
    out = b"GCOL\1\0\0\0" + struct.pack("<Q", size)
    for k, length in enumerate(lengths, 1):
        out += struct.pack("<H6xQ", k, length) + bytes(min(1000, -(-length // 8) * 8))
    out += struct.pack("<H6xQ", 0, size - len(out))
    return out.ljust(size, b"\0")


@pytest.mark.parametrize("at", [0, 5, 6, 7, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_what_lies_beyond_the_end_is_nothing(at):
    file = WatchedFile(io.BytesIO(b"abcdef"), "a.h5ad")
    file.seek(at)
    assert file.read(4) == b"abcdef"[at : at + 4]


def test_bytes_are_those_of_the_file():
    data = bytes(3) + heap(8, 100, 1) + b"end"
    file = WatchedFile(io.BytesIO(data), "a.h5ad")
    assert file.read() == data
    assert file.seek(-3, io.SEEK_END) == len(data) - 3
    assert file.read(10) == b"end"


@pytest.mark.parametrize("length", [2**64 - 16, 2**63, 5000])
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_text_that_leads_to_itself_or_out_of_its_heap_is_refused_wherever_reading_begins(length, first):
    file = WatchedFile(io.BytesIO(bytes(10) + heap(8, length)), "a.h5ad")
    file.seek(10 + first)
    with pytest.raises(DataError, match=r"'a\.h5ad' is damaged: the text at byte \d+ has no end"):
        file.read(64)


@pytest.mark.parametrize("claim", [2**40, 2**99, 10**400])
def test_any_claim_can_be_said(claim):
    with pytest.raises(DataError, match=r"'a' claims (1\.02e\+03|over 5e\+20) GiB of values \(X: "):
        preflight.require_size([(claim, "X")], 10, "a")
