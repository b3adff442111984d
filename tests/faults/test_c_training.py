"""Reliability items 43 to 52: faults while a model is trained, saved or asked; after each, what was on disk before still loads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from fault_cases import GENES, counts, obs, study, unchanged

import trifold
from trifold import folders, store
from trifold.data import Source
from trifold.errors import CheckpointError, DataError, DeviceError, Interrupted, TrainingError, TrifoldWarning
from trifold.terms import Objective
from trifold.train import launch, together

QUICK = {"batch": 16, "device": "cpu", "progress": False, "validation": 0.2}
EVERY = {*store.FILES, store.MANIFEST}


def model(schema=None, *, seed: int = 0):
    schema = schema or trifold.Schema.of(study(), "counts", condition="condition")
    return trifold.trvae(schema, latent=3, hidden=(8,), seed=seed)


@pytest.fixture(scope="module")
def first():
    return model().fit(study(), epochs=2, **QUICK)


@pytest.fixture
def run(first, tmp_path) -> Path:
    """A run folder that faults must not harm."""
    return first.save(tmp_path / "run")


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def finite(one) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in one.network.state_dict().values() if t.is_floating_point())


def equal(a, b) -> bool:
    a, b = a.network.state_dict(), b.network.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@contextmanager
def quick():
    began = time.thread_time()
    yield
    assert time.thread_time() - began < 5


class Poison(trifold.Term):
    """Zero; from step ``at`` of training on, NaN or infinite, or with such a gradient."""

    def __init__(self, *, at: int, what: str):
        super().__init__()
        self.at, self.what, self.calls = at, what, 0

    def forward(self, p):
        zero = 0.0 * p.z.mean(1)
        if self.training:
            self.calls += 1
        if not self.training or self.calls <= self.at:
            return zero
        return {
            "nan": zero * float("nan"),
            "inf": zero + float("inf"),
            "nan in the gradient": torch.sqrt(zero * 0),  # a finite value, whose gradient is 0 * inf
            "inf in the gradient": torch.sqrt(p.z.mean(1) - p.z.mean(1).detach()),  # sqrt at 0
        }[self.what]


@pytest.mark.parametrize("what", ["nan", "inf", "nan in the gradient", "inf in the gradient"])
@pytest.mark.parametrize("at", [0, 7])
def test_item_43_what_is_not_finite_stops_the_run_by_step_and_term_and_the_checkpoint_and_the_earlier_run_stay(first, run, at, what):
    plain, a = model(first.schema), study()
    own = trifold.Model(first.schema, plain.vae, Objective({**plain.objective.terms, "mine": Poison(at=at, what=what)}), plan=plain.plan)
    with quick(), unchanged(a), pytest.raises(TrainingError) as caught:
        own.fit(a, epochs=9, out=run, checkpoint_every=3, **QUICK)
    term = "gradient" if "gradient" in what else "mine"
    assert (caught.value.step, caught.value.term) == (at, term)
    assert ("'mine'" if term == "mine" else "The gradient") in str(caught.value)
    assert f"at step {at}. The model was put back to step 0. Lower lr (now" in str(caught.value)
    assert finite(own)
    assert not any(part.training for whole in (own.vae, own.objective) for part in whole.modules())
    assert own.card == {}
    kept = run.with_name("run.checkpoint")
    assert names(kept) == {"step-0000000003", "step-0000000006"} if at > 6 else not kept.exists()
    for path in kept.glob("step-*"):
        parts, said = folders.read_folder(path, ("state.safetensors", "state.json"), what="The checkpoint")
        state = folders.tensors_in(parts["state.safetensors"], said, "state.safetensors")
        assert all(bool(torch.isfinite(t).all()) for t in state.values() if t.is_floating_point())
    assert names(run) == EVERY
    assert equal(trifold.load(run), first)


def presets():
    log, binary = study(), study()
    log.layers["counts"] = np.log1p(counts())
    binary.layers["counts"] = (counts() > 0).astype(np.float32)
    roles = {"trvae": {"condition": "condition"}, "invae": {"spurious": "donor", "invariant": "cell_type"}, "gamma_vae": {}}
    for name, role in roles.items():
        small = {"invariant": 3, "spurious": 2} if name == "invae" else {"latent": 3}
        for likelihood in ("negative_binomial", "zero_inflated", "poisson"):
            yield pytest.param(name, study(), role, None, {"likelihood": likelihood, "hidden": (8,), **small}, id=f"{name} {likelihood}")
        yield pytest.param(name, log, role, "real", {"hidden": (8,), **small}, id=f"{name} real")
        yield pytest.param(name, binary, role, "binary", {"hidden": (8,), **small}, id=f"{name} binary")
        paper = study() if name == "invae" else log
        yield pytest.param(name, paper, role, None, {"published": True}, id=f"{name} published")


@pytest.mark.parametrize(("name", "data", "roles", "kind", "options"), list(presets()))
def test_item_44_a_learning_rate_of_a_thousand_stops_every_preset_within_ten_steps_with_finite_weights(name, data, roles, kind, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrifoldWarning)
        own = getattr(trifold, name)(trifold.Schema.of(data, "counts", kind=kind, **roles), **options)
        with quick(), unchanged(data), pytest.raises(TrainingError, match=r"Lower lr \(now 1000\)") as caught:
            own.fit(data, epochs=30, lr=1e3, **QUICK)
    assert caught.value.step <= 10
    assert caught.value.term in {*own.objective.terms, "gradient"}
    assert f"at step {caught.value.step}" in str(caught.value)
    assert finite(own)


def test_item_44_no_checkpoint_is_written_of_weights_that_are_diverging(first, tmp_path):
    own = model(first.schema)
    with pytest.raises(TrainingError, match="ten thousand times"):
        own.fit(study(), epochs=30, lr=1e3, out=tmp_path / "run", checkpoint_every=1, **QUICK)
    assert names(tmp_path / "run.checkpoint") == {"step-0000000001"}  # of the one good step; the rate had not acted on its loss


class StopAt:
    """Sends this process a signal at the end of an epoch."""

    def __init__(self, epoch: int, number: int):
        self.epoch, self.number = epoch, number

    def __call__(self, row: dict[str, float]) -> None:
        if row["epoch"] == self.epoch:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_item_45_a_signal_finishes_the_step_writes_a_checkpoint_and_resume_goes_on_to_the_same_bits(first, run, number):
    a, options = study(), {**QUICK, "epochs": 4, "out": run}
    before = signal.getsignal(number)
    with quick(), unchanged(a), pytest.raises(Interrupted) as caught:
        model(first.schema).fit(a, on_epoch=StopAt(1, number), **options)
    steps = 2 * 3 + 1  # 48 cells of training: three minibatches in each of two epochs, and the step that was finished
    assert caught.value.code == 128 + number
    assert f"signal {int(number)}" in str(caught.value)
    assert f"checkpoint of step {steps} is in {str(run) + '.checkpoint'!r}" in str(caught.value)
    assert "resume=True" in str(caught.value)
    assert signal.getsignal(number) is before
    assert names(run.with_name("run.checkpoint")) == {f"step-{steps:010d}"}
    assert equal(trifold.load(run), first)
    again = model(first.schema).fit(a, resume=True, **options)
    assert equal(again, model(first.schema).fit(a, epochs=4, **QUICK))
    assert names(run.parent) == {"run", "run.previous"}


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch
from torch import nn
torch.set_num_threads(1)
from trifold import folders, store
from trifold.train import Checkpoints
from trifold.train.guard import Guard
from trifold.train.state import Position, State

def state(k):
    net = nn.Linear(300, 300)
    nn.init.constant_(net.weight, k)
    return State(net, torch.optim.Adam(net.parameters()), Guard(net, every=1), Position(done=k, lr=1.0))

def kept(folder):
    return Checkpoints(folder / "run.checkpoint", every=1, minutes=None, about={})

def checkpoint(folder, k):
    kept(folder).write(state(k))

def save(folder, k):
    store.write_run(folder / "run", card={"k": k}, schema={}, spec={}, weights={"w": torch.full((300, 300), float(k))}, history="")

def checkpoint_found(folder):
    found = state(0)
    assert kept(folder).restore(found)
    assert bool((found.network.weight == found.at.done).all())
    return found.at.done

def save_found(folder):
    parts = store.read_run(folder / "run")
    assert bool((parts["weights"]["w"] == parts["card"]["k"]).all())
    return parts["card"]["k"]

chance, out = random.Random(int(sys.argv[2])), []
for what, write, read in (("checkpoint", checkpoint, checkpoint_found), ("save", save, save_found)):
    done = 0
    folder = Path(sys.argv[1]) / what
    for _ in range(int(sys.argv[3])):
        mine, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            for k in range(done + 1, 10**6):
                write(folder, k)
                os.write(theirs, k.to_bytes(4, "big"))
        os.close(theirs)
        said = os.read(mine, 4)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(mine, 4):
            said = more
        os.close(mine)
        before, done = int.from_bytes(said, "big"), read(folder)
        assert done in (before, before + 1), (what, before, done)
    write(folder, done + 1)
    print(what, read(folder) - done, *sorted(p.name for p in folder.rglob(".*")))
"""


def test_item_46_kills_at_random_moments_while_checkpoints_and_runs_are_written_cost_nothing_that_was_finished(tmp_path):
    """Four kills of each; benchmarks/kills.py does a hundred. The next write clears what they left half done."""
    said = subprocess.run([sys.executable, "-c", KILLS, str(tmp_path), "0", "4"], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, "checkpoint 1\nsave 1\n", "")


def test_item_46_unfinished_folders_of_living_writers_are_left_alone(tmp_path):
    for name in (".run.dead0000.part", ".run.alive000.part"):
        (tmp_path / name).mkdir()
    handle = folders._lock(tmp_path / ".run.alive000.part", folders._EXCLUSIVE)
    assert handle is not None
    folders.sweep(tmp_path, ".run.*.part")
    assert names(tmp_path) == {".run.alive000.part"}
    folders._unlock(handle)
    folders.sweep(tmp_path, ".run.*.part")
    assert names(tmp_path) == set()


@contextmanager
def limited(size: int):
    """No file may grow beyond so many bytes: the kernel's own refusal (EFBIG), as of a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


@pytest.mark.parametrize("name", ["z.zarr"])
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
            taken = folders.free(mounted) - room
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
    import shutil

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
    plain = model(first.schema)
    terms = {**plain.objective.terms, "mine": Poison(at=4, what="nan")}
    own = trifold.Model(first.schema, plain.vae, Objective(terms), plan=plain.plan)
    with pytest.raises(TrainingError) as caught:
        own.fit(Dying(), epochs=9, **QUICK)
    assert caught.value.step == 4
    assert alive() == []


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_item_50_a_process_of_several_that_is_killed_ends_them_all():
    with pytest.raises(DeviceError, match=r"exit codes: \[-9, -9\]"):
        together(_killed, processes=2)


MEMORY = """
import resource, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import anndata, h5py, numpy as np, pandas as pd, scipy.sparse as sp, torch, trifold, zarr
torch.set_num_threads(1)
n, g, out = 30_000, 4_000, Path(sys.argv[1])
rng = np.random.default_rng(0)
x = sp.csr_matrix((np.ones(n * 4, dtype=np.float32), rng.integers(0, g, n * 4), np.arange(0, 4 * n + 1, 4)), shape=(n, g))
x.sum_duplicates()
obs = pd.DataFrame({"batch": np.where(np.arange(n) % 2, "a", "b")}, index=[str(i) for i in range(n)])
a = anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(g)]))
schema = trifold.Schema.of(a, condition="batch")
model = trifold.trvae(schema, latent=2, hidden=(4,)).fit(a[:400], epochs=1, batch=100, device="cpu", progress=False)
model.latent(a[:64])
model.expression(a[:64], out=out / "small.h5ad")
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[2]) * 2**20,) * 2)
try:
    np.ones((n, g), dtype=np.float32)
    print("the limit does not bind")
except MemoryError:
    pass
print(model.latent(a).shape)
print(model.expression(a, out=out / "x.h5ad").name)
try:
    model.expression(a)
except MemoryError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set with RLIMIT_AS and measured in /proc")
def test_item_51_what_does_not_fit_into_memory_is_embedded_and_decoded_in_pieces(tmp_path):
    """30,000 x 4,000 are 458 MiB as float32; 250 MiB may be used."""
    said = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path), "250"], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    latent, file, error = said.stdout.splitlines()
    assert latent == "(30000, 2)"
    assert file == "x.h5ad"
    assert "(30000, 4000)" in error
    assert names(tmp_path) == {"small.h5ad", "x.h5ad"}


@pytest.mark.parametrize("device", ["cuda", "mps", "tpu", "CUDA", "cuda:0"])
def test_item_52_a_device_that_is_not_there_is_refused_by_name_and_never_replaced(first, run, device, tmp_path):
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if there.get(device):
        pytest.skip(f"this machine has {device}")
    a, own = study(), model(first.schema)
    asked = [
        lambda: own.fit(a, epochs=2, out=run, **{**QUICK, "device": device}),
        lambda: first.latent(a, device=device),
        lambda: first.predict(a, {"condition": "stimulated"}, device=device),
        lambda: first.expression(a, out=tmp_path / "x.h5ad", device=device),
        lambda: first.curvature(a, device=device),
    ]
    for ask in asked:
        with quick(), unchanged(a), pytest.raises(DeviceError, match=f"device='{device}' was asked for and is not there.*has: auto, cpu"):
            ask()
    assert equal(own, model(first.schema))
    assert names(tmp_path) == {"run"}
    assert equal(trifold.load(run), first)


def test_item_52_more_devices_than_there_are_is_refused_by_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with quick(), pytest.raises(DeviceError, match="devices=2 were asked for; this machine has 1 of CUDA"):
        launch("cuda", devices=2)
