"""What is fuzzed: the schema, cells, a tiny training and latents of odd data; run folders and data files with damaged bytes."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from harness import Outcome, damaged, fingerprint, mutated, outcome
from hypothesis import HealthCheck, Phase, given, seed, settings
from strategies import Case, cases

import trifold
from trifold.data import Cells

TINY: dict[str, Any] = {"latent": 2, "hidden": (4,)}
QUICK: dict[str, Any] = {"epochs": 1, "batch": 8, "validation": 0.0, "device": "cpu", "progress": False}


def study() -> anndata.AnnData:
    """Twelve cells and five genes with two conditions, counts in X and in a layer."""
    x = sp.csr_matrix(np.random.default_rng(0).poisson(1.5, (12, 5)).astype(np.float32) + np.eye(12, 5, dtype=np.float32))
    obs = pd.DataFrame(
        {"condition": pd.Categorical(["control", "stimulated"] * 6), "dose": np.arange(12.0)}, index=[f"c{i}" for i in range(12)]
    )
    a = anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"GENE{j}" for j in range(5)]))
    a.layers["counts"] = x.copy()
    return a


def work(case: Case) -> str:
    """Schema, cells, and (where there is a condition to train on) one epoch and latents.

    Returns:
        ``"read"`` or ``"trained"``.

    Raises:
        AssertionError: A result that is not finite, not in order, or an input that was changed.
    """
    before = fingerprint(case.data)
    try:
        return _work(case)
    finally:
        assert fingerprint(case.data) == before, "the input was changed"


def _work(case: Case) -> str:
    schema = trifold.Schema.of(case.data, case.x, **case.roles, **case.options)
    assert trifold.Schema.from_spec(schema.to_spec()) == schema
    cells = Cells(case.data, schema)
    batch = cells.batch(np.arange(cells.n)[::-1])
    rows = batch.rows.to_dense()
    assert rows.isfinite().all()
    assert batch.size.isfinite().all()
    assert (batch.size > 0).all()
    assert all(d.isfinite().all() for d in batch.design.values())
    one = cells.batch([0]).rows.to_dense()
    assert one.equal(rows[-1:]), "the first cell is another one when it is read alone"
    if "condition" not in schema.roles or cells.n < 4:
        return "read"
    model = trifold.trvae(trifold.Schema.of(case.data, case.x, condition=case.roles["condition"], **case.options), **TINY)
    model.fit(case.data, **QUICK)
    z = model.latent(case.data)
    n = case.data.shape[0]
    assert z.shape == (n, 2)
    assert np.isfinite(z).all()
    return "trained"


def odd_data(many: int = 20) -> Callable[[int], list[Outcome]]:
    """A task that draws odd data sets by the seed and works on each."""

    def task(number: int) -> list[Outcome]:
        said: list[Outcome] = []

        @seed(number)
        @settings(max_examples=many, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
        @given(cases())
        def draw(case: Case) -> None:
            what, where = outcome(lambda: work(case))
            said.append((what, f"{case!r}\n{where}" if where else ""))

        draw()
        return said

    return task


def load_damaged(run: Path, name: str, folder: Path) -> Callable[[int], list[Outcome]]:
    """A task for one file of a run folder: damage it and load the run; what loads must hold finite weights.

    Args:
        run: A sound run folder.
        name: The file.
        folder: Where the damaged copy goes.
    """
    copy = folder / "run"
    shutil.copytree(run, copy)
    data = (run / name).read_bytes()

    def task(seed: int) -> list[Outcome]:
        broken = damaged(data, random.Random(f"{name}{seed}"))
        (copy / name).write_bytes(broken)

        def act() -> None:
            model = trifold.load(copy)
            assert broken == data or name == "MANIFEST.json", "damaged bytes were loaded"
            assert all(t.isfinite().all() for t in model.vae.state_dict().values() if t.is_floating_point())

        return [outcome(act)]

    return task


def agree_and_load(run: Path, name: str, folder: Path) -> Callable[[int], list[Outcome]]:
    """As ``load_damaged``, but the manifest is made to agree, as an attacker would: what is behind the hashes is tried.

    Files of JSON have bytes damaged, or a value of what they say replaced by an odd one.
    """
    copy = folder / "run"
    shutil.copytree(run, copy)
    data, manifest = (run / name).read_bytes(), json.loads((run / "MANIFEST.json").read_text())

    def task(number: int) -> list[Outcome]:
        rng = random.Random(f"{name}{number}")
        broken = _odd_json(data, rng) if name.endswith(".json") and number % 3 else damaged(data, rng)
        (copy / name).write_bytes(broken)
        manifest["files"][name] = {"size": len(broken), "sha256": hashlib.sha256(broken).hexdigest()}
        (copy / "MANIFEST.json").write_text(json.dumps(manifest))

        def act() -> None:
            model = trifold.load(copy)
            assert all(t.isfinite().all() for t in model.vae.state_dict().values() if t.is_floating_point())

        return [outcome(act)]

    return task


def _odd_json(data: bytes, rng: random.Random) -> bytes:
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        value = mutated(value, rng)
    return json.dumps(value).encode()


def read_h5ad(folder: Path) -> Callable[[int], list[Outcome]]:
    """A task that damages the bytes of an h5ad file and reads it."""
    whole = folder / "whole.h5ad"
    study().write_h5ad(whole)
    data, path = whole.read_bytes(), folder / "a.h5ad"

    def task(seed: int) -> list[Outcome]:
        rng = random.Random(seed)
        path.write_bytes(damaged(data, rng))
        return [outcome(lambda: _read(path, rng))]

    return task


def read_odd_h5ad(folder: Path) -> Callable[[int], list[Outcome]]:
    """A task that changes what an h5ad file says, in sound HDF5: elements removed, replaced or moved, attributes changed."""
    whole, path = folder / "whole.h5ad", folder / "a.h5ad"
    study().write_h5ad(whole)

    def task(number: int) -> list[Outcome]:
        rng = random.Random(number)
        shutil.copyfile(whole, path)
        with h5py.File(path, "r+") as f:
            for _ in range(rng.choice((1, 1, 2))):
                _change(f, rng)
        return [outcome(lambda: _read(path, rng))]

    return task


def _change(f: h5py.File, rng: random.Random) -> None:
    names: list[str] = []
    f.visit(names.append)
    item = f[rng.choice(names)]
    name, how = item.name, rng.randrange(6)
    if how == 0:
        del f[name]
    elif how == 1:  # another value of an attribute, or none
        here = rng.choice([f, item])
        keys = list(here.attrs)
        if keys:
            key = rng.choice(keys)
            del here.attrs[key]
            value = rng.choice(
                (None, "", "csr_matrix", "csc_matrix", "array", "dataframe", "categorical", 3, -1, [0, 0], [12, 6], [2**40, 5], [12])
            )
            if value is not None:
                here.attrs[key] = value
    elif how == 2:  # an element where another one belongs
        other = rng.choice(names)
        if not other.startswith(name.lstrip("/")) and not name.lstrip("/").startswith(other):
            f.copy(f[other], f, "moved")
            del f[name]
            f.move("moved", name)
    elif how == 3 and isinstance(item, h5py.Dataset):  # values of another dtype or shape
        attrs = dict(item.attrs)
        del f[name]
        odd = [np.zeros(0), np.zeros((2, 2)), np.float64(np.nan), np.arange(3), np.full(12, -1), np.full(60, 2**40), np.array([b"x"] * 12)]
        f[name] = rng.choice([*odd, np.zeros((12, 5), np.complex64), np.zeros((12, 5), bool), b"text"])
        for key, value in attrs.items():
            f[name].attrs[key] = value
    elif how == 4 and isinstance(item, h5py.Dataset) and item.size and item.dtype.kind in "iuf":  # one value
        at = tuple(rng.randrange(k) for k in item.shape)
        item[at] = rng.choice((-1, 0, 1, 100, np.iinfo(np.int8).max))
    else:  # a link to itself, or to nothing
        del f[name]
        f[name] = h5py.SoftLink(rng.choice((name, "/", "/no/such", "/X")))


def read_zarr(folder: Path) -> Callable[[int], list[Outcome]]:
    """A task that damages one file of a zarr folder, its bytes or what its JSON says, and reads the folder."""
    whole = folder / "whole.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study().write_zarr(whole)
    files = sorted(p for p in whole.rglob("*") if p.is_file())
    described = [p for p in files if p.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup")]

    def task(number: int) -> list[Outcome]:
        rng = random.Random(number)
        file = rng.choice(described if number % 2 else files)
        kept = file.read_bytes()
        file.write_bytes(_odd_json(kept, rng) if number % 2 else damaged(kept, rng))
        try:
            return [outcome(lambda: _read(whole, rng))]
        finally:
            file.write_bytes(kept)

    return task


def _read(path: Path, rng: random.Random) -> None:
    """Open a file and read all of it: source, schema, cells."""
    x = rng.choice((None, "counts"))
    source = trifold.open(path, x)
    for start in range(0, source.n, 4096):
        if start > 1 << 16:
            break
        source.take(np.arange(start, min(source.n, start + 4096))[::-1])
    schema = trifold.Schema.of(path, x, condition="condition")
    Cells(path, schema).batch([0])
