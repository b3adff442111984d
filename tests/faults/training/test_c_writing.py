"""Reliability items 47 to 49: full disks, folders that cannot be written, several writers; what was on disk before still loads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import anndata
import pytest
import torch
from fault_cases import study, unchanged
from training_cases import QUICK, equal, finite, model, names, quick

import trifold
from full_disk import limited
from trifold import folders, outputs, store
from trifold.errors import CheckpointError

FULL = r"could not be written: the disk is full \(File too large\)\. It needs [\d,]+ bytes, and [\d,]+ are free there\."


def test_item_47_a_full_disk_is_told_by_path_and_bytes_and_the_saved_model_is_intact(first, run):
    other = model(first.schema, seed=1)
    for size in (1, 1000, 3000):
        with quick(), limited(size), pytest.raises(CheckpointError, match=FULL) as caught:
            other.save(run)
        assert f"'{run}'" in str(caught.value)
        assert names(run.parent) == {"run"}
        assert equal(trifold.load(run), first)


def test_item_47_a_checkpoint_that_finds_the_disk_full_stops_training_and_what_was_written_before_goes_on(first, run):
    """Weights stay those of the step; the earlier checkpoint and the earlier run are intact; with room, resume ends where it would have."""
    a, options, own = study(), {**QUICK, "epochs": 4, "out": run, "checkpoint_every": 4}, model(first.schema)

    def fill(row: dict[str, float]) -> None:
        if row["epoch"] == 1:  # after one checkpoint, of step 4
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))

    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with quick(), unchanged(a), pytest.raises(CheckpointError, match=f"The checkpoint .*step-0000000008' {FULL}"):
            own.fit(a, on_epoch=fill, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert finite(own)
    assert own.card == {}
    assert names(run.with_name("run.checkpoint")) == {"step-0000000004"}
    assert equal(trifold.load(run), first)
    assert equal(model(first.schema).fit(a, resume=True, **options), model(first.schema).fit(a, epochs=4, **QUICK))


@pytest.mark.parametrize("name", ["z.h5ad", "z.zarr"])
def test_item_47_an_answer_that_finds_the_disk_full_leaves_no_litter_and_the_old_file(first, tmp_path, name):
    a, out = study(), tmp_path / name
    with unchanged(a), limited(300), pytest.raises(CheckpointError, match=FULL) as caught:
        first.latent(a, out=out)
    assert f"'{out}'" in str(caught.value)
    assert names(tmp_path) == set()
    first.latent(a, out=out)
    with limited(300), pytest.raises(CheckpointError, match=FULL):
        first.expression(a, out=out, overwrite=True)
    assert names(tmp_path) == {name}
    assert (anndata.io.read_zarr if name == "z.zarr" else anndata.read_h5ad)(out).n_vars == 3


def test_item_47_a_disk_that_is_full_in_earnest(first, tmp_path):
    """A file system of 64 KiB, where it may be mounted."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(mounted)], capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        run = first.save(mounted / "run")
        (mounted / "other").write_bytes(bytes(16_000))

        def save_again(times: int) -> None:
            for _ in range(times):  # beside the run and the previous one there is no room
                model(first.schema).save(run)

        with pytest.raises(CheckpointError, match=r"disk is full \(No space left on device\)\. It needs [\d,]+ bytes, and [\d,]+ are free"):
            save_again(3)
        assert not [name for name in names(mounted) if name.startswith(".")]
        trifold.load(run)
        for room in (12_000, 2_000):  # X alone would fit, or not
            taken = outputs.free(mounted) - room
            with suppress(OSError):
                (mounted / "more").write_bytes(bytes(max(0, taken)))
            with pytest.raises(CheckpointError, match=r"x\.h5ad' could not be written: the disk is full"):
                first.expression(study(), out=mounted / "x.h5ad")
            assert not [name for name in names(mounted) if "h5ad" in name]
            (mounted / "more").unlink()
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def places(folder: Path) -> dict[str, Path]:
    (folder / "file").write_text("mine")
    (folder / "busy.checkpoint").write_text("mine")
    return {
        "not a folder that can be written to": folder / "file" / "run",
        "holds something else": folder / "file",
        "which is not a folder": folder / "busy",
        "File name too long": folder / ("n" * 250),
        "with a name of its own": Path("/"),
    }


def test_item_48_a_place_that_cannot_be_written_is_refused_before_training_by_its_path(first, tmp_path):
    for words, out in places(tmp_path).items():
        steps = []
        own = model(first.schema)
        with quick(), pytest.raises(CheckpointError, match=words) as caught:
            own.fit(study(), epochs=1000, out=out, on_epoch=steps.append, **QUICK)
        assert str(out) in str(caught.value)
        assert not steps
        assert equal(own, model(first.schema))
    assert names(tmp_path) == {"file", "busy.checkpoint"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder in which nobody, not even root, can make anything")
def test_item_48_a_folder_that_is_read_only_for_everybody_is_refused_before_training(first):
    with quick(), pytest.raises(CheckpointError, match="'/proc' is not a folder that can be written to"):
        model(first.schema).fit(study(), epochs=1000, out="/proc/trifold/run", **QUICK)


def test_item_48_a_working_folder_that_has_vanished_is_refused_before_training(first, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with quick(), pytest.raises(CheckpointError, match="'run' cannot be made"):
        model(first.schema).fit(study(), epochs=1000, out="run", **QUICK)


def test_item_48_a_folder_that_vanishes_in_training_is_made_again_and_one_replaced_by_a_file_stops_it(first, tmp_path):
    out = tmp_path / "there" / "run"

    def vanish(row: dict[str, float]) -> None:
        shutil.rmtree(out.parent)
        if row["epoch"] == 1:
            out.parent.write_text("mine")

    own = model(first.schema)
    with pytest.raises(CheckpointError, match="step-0000000007' could not be written: "):
        own.fit(study(), epochs=4, out=out, checkpoint_every=1, on_epoch=vanish, **QUICK)
    assert finite(own)
    assert (tmp_path / "there").read_text() == "mine"


def test_item_49_of_many_that_save_to_one_path_one_wins_whole_and_no_reader_sees_anything_else(tmp_path):
    """At the moments at which the threads happen to be: four write as often as they can, one reads all the time."""
    path, failed, over = tmp_path / "run", [], threading.Event()

    def write(k: int, times: int = 20) -> None:
        try:
            for _ in range(times):
                weights = {"w": torch.full((50,), float(k))}
                store.write_run(path, card={"k": k}, schema={}, spec={}, weights=weights, history=str(k))
        except BaseException as error:
            failed.append(error)

    def read() -> None:
        try:
            while not over.is_set():
                whole()
        except BaseException as error:
            failed.append(error)

    def whole() -> None:
        parts = store.read_run(path)
        assert bool((parts["weights"]["w"] == parts["card"]["k"]).all())
        assert parts["history"] == str(parts["card"]["k"])

    write(0, 1)
    writers, reader = [threading.Thread(target=write, args=(k,)) for k in range(1, 5)], threading.Thread(target=read)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    reader.join()
    assert failed == []
    whole()
    assert names(tmp_path) == {"run", "run.previous"}


def test_item_49_processes_that_save_to_one_path_do_not_harm_each_other_at_any_interleaving(first, tmp_path):
    path = tmp_path / "run"
    script = (
        "import sys, torch\nfrom trifold import store\ntorch.set_num_threads(1)\nk = int(sys.argv[2])\n"
        "sys.stdin.readline()\n"
        "for _ in range(20):\n"
        "    store.write_run(sys.argv[1], card={'k': k}, schema={}, spec={}, weights={'w': torch.full((50,), float(k))}, history=str(k))\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", script, str(path), str(k)], stdin=subprocess.PIPE) for k in (1, 2)]
    for process in both:
        process.communicate(b"\n")
    assert [process.returncode for process in both] == [0, 0]
    parts = store.read_run(path)
    assert bool((parts["weights"]["w"] == parts["card"]["k"]).all())
    assert names(tmp_path) == {"run", "run.previous"}


def test_item_49_a_checkpoint_that_another_process_wrote_first_is_left(tmp_path):
    for text in (b"first", b"second"):
        folders.write_folder(tmp_path / "step-1", {"a": text}, {}, previous=None, what="The checkpoint")
    assert folders.read_folder(tmp_path / "step-1", ("a",), what="The checkpoint")[0] == {"a": b"first"}
    assert names(tmp_path) == {"step-1"}
