"""``trifold latent`` and ``trifold predict`` to files that are written piece by piece."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from cli_cases import HELD, trifold_, words

from trifold import inference
from trifold.cli import files
from trifold.errors import DataError

WHERE = ["--where", "condition=control", "--where", f"cell_type={HELD['cell_type']}"]


@pytest.fixture
def small(monkeypatch):
    """Pieces of 64 cells, read from disk."""
    monkeypatch.setattr(inference, "_MOST", 64)
    monkeypatch.setattr(files, "_IN_MEMORY", 0)


def read(path: Path) -> anndata.AnnData:
    return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_latent_writes_the_coordinates_of_a_file_that_is_read_in_blocks(data, run, tmp_path, small, suffix: str):
    assert trifold_("latent", run, data, "--out", tmp_path / "z.npy").exit_code == 0
    out = tmp_path / f"z{suffix}"
    said = trifold_("latent", run, data, "--out", out)
    found = read(out)
    np.testing.assert_array_equal(found.X, np.load(tmp_path / "z.npy"))
    pd.testing.assert_frame_equal(found.obs, anndata.read_h5ad(data).obs)
    assert list(found.var_names) == [f"latent_{j}" for j in range(found.n_vars)]
    assert f"320 cells × {found.n_vars} latent dimensions" in words(said.output)


@pytest.mark.parametrize("kind", ["mean", "residual"])
def test_predict_writes_the_same_to_either_kind_of_file(data, run, tmp_path, small, kind: str):
    ask = ["predict", run, data, "--to", "condition=drug", *WHERE, "--kind", kind, "--out"]
    said = [words(trifold_(*ask, tmp_path / name).output) for name in ("x.h5ad", "x.zarr")]
    first, second = read(tmp_path / "x.h5ad"), read(tmp_path / "x.zarr")
    x, y = (a.X if kind == "mean" else a.X.toarray() for a in (first, second))
    np.testing.assert_array_equal(x, y)
    pd.testing.assert_frame_equal(first.obs, second.obs)
    unseen = int((~first.obs["seen"]).sum())
    for one in said:
        assert f"{first.n_obs:,} cells × 60 genes under condition = drug ({kind}; {unseen:,} of a combination never trained on)" in one


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_what_exists_is_refused_with_what_to_type_and_replaced_with_force(data, run, tmp_path, small, suffix: str):
    out = tmp_path / f"z{suffix}"
    assert trifold_("latent", run, data, "--out", out).exit_code == 0
    ask = ["predict", run, data, "--to", "condition=drug", "--out", out]
    refused = trifold_(*ask)
    assert refused.exit_code == 1
    assert "pass --force to replace it" in words(refused.stderr)
    assert trifold_(*ask, "--force").exit_code == 0
    assert read(out).n_vars == 60
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_nothing_is_left_of_an_answer_that_failed_on_the_way(data, run, tmp_path, small, monkeypatch):
    from trifold.results import Result

    put = Result.put

    def failing(self, rows):
        if self.at >= 128:
            raise DataError("Row 128 cannot be read.")
        put(self, rows)

    monkeypatch.setattr(Result, "put", failing)
    result = trifold_("latent", run, data, "--out", tmp_path / "z.h5ad")
    assert result.exit_code == 1
    assert "Row 128 cannot be read." in words(result.stderr)
    assert list(tmp_path.iterdir()) == []
