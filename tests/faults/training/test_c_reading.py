"""Reliability item 50: cells whose reading fails while a model is trained or asked."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import scipy.sparse as sp
from fault_cases import GENES, counts, obs
from training_cases import QUICK, equal, finite, model, names, poisoned, quick

import trifold
from trifold.data import Source
from trifold.errors import DataError, DeviceError, TrainingError
from trifold.train import together


class Dying(Source):
    """Cells on disk, it says, whose reading fails after some reads."""

    block, sparse, x, where, other = 4, True, "counts", "layers['counts']", {}

    def __init__(self, error: BaseException | None = None):
        self.matrix, self.obs = sp.csr_matrix(counts()), obs()
        self.n, self.dtype, self.genes = *self.matrix.shape[:1], self.matrix.dtype, tuple(f"GENE{j}" for j in range(GENES))
        self.error, self.left, self.threads = error, 10**9, set()

    @property
    def window(self) -> int:
        return 16

    def take(self, index):
        self.left -= 1
        if self.left < 0 and self.error is not None:
            self.threads.add(threading.current_thread().name)
            raise self.error
        return self.matrix[index]


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("trifold-reader")]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(5, "Input/output error"), DataError),
        (RuntimeError("no such chunk"), DataError),
        (DataError("damaged at row 3"), DataError),
        (MemoryError("no room"), MemoryError),
        (SystemExit(3), SystemExit),
    ],
    ids=lambda e: getattr(e, "__name__", type(e).__name__),
)
@pytest.mark.parametrize("reads", [0, 5])
def test_item_50_a_reader_that_dies_ends_training_with_its_error_no_hang_and_no_thread_left(first, run, error, expected, reads):
    source = Dying(error)

    def from_now(row: dict[str, float]) -> None:
        if row["epoch"] == 1:
            source.left = reads

    own = model(first.schema)
    with quick(), pytest.raises(expected, match=str(error.args[-1])) as caught:
        own.fit(source, epochs=9, out=run, checkpoint_every=2, on_epoch=from_now, **QUICK)
    if not isinstance(error, (DataError, MemoryError, SystemExit)):
        assert "16 cells of counts, rows " in str(caught.value)
        assert f"{type(error).__name__}: " in str(caught.value)
        assert "resume=True" in str(caught.value)
    assert alive() == []
    assert any(name.startswith("trifold-reader") for name in source.threads)
    assert finite(own)
    assert equal(trifold.load(run), first)
    assert [p for p in names(run.with_name("run.checkpoint")) if p.startswith("step-")]
    fresh = model(first.schema).fit(Dying(), epochs=9, out=run, checkpoint_every=2, resume=True, **QUICK)
    assert equal(fresh, model(first.schema).fit(Dying(), epochs=9, **QUICK))


def test_item_50_a_reader_that_dies_while_a_model_is_asked_ends_the_answer_and_no_file_is_left(first, tmp_path):
    source = Dying(OSError(5, "Input/output error"))
    source.left = 1  # the look at the values
    with quick(), pytest.raises((DataError, OSError), match="Input/output error"):
        first.latent(source, out=tmp_path / "z.h5ad")
    assert alive() == []
    assert names(tmp_path) == set()


def test_item_50_when_training_fails_elsewhere_the_reader_goes_too(first):
    own = poisoned(first, at=4, what="nan")
    with pytest.raises(TrainingError) as caught:
        own.fit(Dying(), epochs=9, **QUICK)
    assert caught.value.step == 4
    assert alive() == []


def _killed(moment: str) -> None:
    if os.environ["RANK"] == "1":
        time.sleep(600)
    Path(moment).touch()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_item_50_a_process_of_several_that_is_killed_ends_them_all(tmp_path, record_property):
    with pytest.raises(DeviceError, match=r"exit codes: \[-9, -\d+\]"):
        together(_killed, str(tmp_path / "moment"), processes=2)
    record_property("fault_seconds", time.time() - (tmp_path / "moment").stat().st_mtime)
