"""Run folders, h5ad files and zarr folders with damaged bytes: read, or refused by a TrifoldError; no crash, no other exception."""

from __future__ import annotations

import os
import time

import harness
import pytest
from harness import bad, in_child, seconds
from targets import agree_and_load, load_damaged, read_h5ad, read_odd_h5ad, read_zarr

from trifold.store import FILES, MANIFEST

DEFAULT = 0.3  # seconds for each file


def run(task, default: float = DEFAULT) -> None:
    next_seed, counts, examples = in_child(task, 0, until=time.monotonic() + seconds(default))
    assert next_seed > 0
    assert sum(counts.values()) >= next_seed - 1
    assert not bad(counts), "\n".join(f"{n} x {k}: {examples[k]}" for k, n in bad(counts).items())


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_run_with_damaged_bytes_is_refused(run_folder, tmp_path, name):
    run(load_damaged(run_folder, name, tmp_path))


@pytest.mark.parametrize("name", FILES)
def test_a_run_with_damaged_bytes_and_a_manifest_that_agrees_loads_or_is_refused(run_folder, tmp_path, name):
    run(agree_and_load(run_folder, name, tmp_path))


def test_an_h5ad_file_with_damaged_bytes_is_read_or_refused(tmp_path):
    run(read_h5ad(tmp_path), 1.0)


def test_an_h5ad_file_that_says_odd_things_is_read_or_refused(tmp_path):
    run(read_odd_h5ad(tmp_path), 1.0)


def test_a_zarr_folder_with_damaged_bytes_is_read_or_refused(tmp_path):
    run(read_zarr(tmp_path), 1.0)


def test_a_crash_of_a_child_and_a_foreign_error_are_seen():
    def crash(seed: int) -> list[tuple[str, str]]:
        if seed == 2:
            os.abort()
        return [("works", "")]

    after, counts, examples = in_child(crash, 0, until=time.monotonic() + 5)
    assert (after, counts["works"], counts["CRASH: signal 6"]) == (3, 2, 1)
    assert examples["CRASH: signal 6"] == "seed 2"
    assert bad(counts) == {"CRASH: signal 6": 1}


def test_a_child_that_hangs_is_ended_and_seen(monkeypatch):
    monkeypatch.setattr(harness, "SILENCE", 0.3)

    def hang(seed: int) -> list[tuple[str, str]]:
        while seed == 1:
            pass
        return [("works", "")]

    after, counts, examples = in_child(hang, 0, until=time.monotonic() + 5)
    assert (after, counts["works"], counts["HANG"]) == (2, 1, 1)
    assert examples["HANG"] == "seed 1"
    assert bad(counts) == {"HANG": 1}
