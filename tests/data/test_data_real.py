"""Real files: the kind of values is recognised, on disk and in memory alike."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata
import numpy as np
import pytest

from trifold.data import Cells, Schema
from trifold.errors import DataError

DATA = next((p / "shared/data" for p in Path(__file__).resolve().parents if (p / "shared/data").is_dir()), Path("absent"))
KINDS = {
    "kang_scgen_valid": "counts",
    "onek1k_subset": "counts",
    "pbmc_3tech_counts": "counts",
    "larry_subset": "real",
    "gtex_26tissues": "real",
    "tcga_brca_subtypes": "real",
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_the_kind_of_a_real_file_is_recognised_and_disk_equals_memory(name, kind):
    path = DATA / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"{path.name} is not in shared/data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a = anndata.read_h5ad(path)
        schema = Schema.of(path)
        assert schema == Schema.of(a)
        assert schema.kind == kind
        index = np.array([100, 3, 3, 57, 219])
        disk, memory = Cells(path, schema).batch(index), Cells(a, schema).batch(index)
        assert disk.rows.to_dense().equal(memory.rows.to_dense())
        assert disk.size.equal(memory.size)
        if kind == "real":
            with pytest.raises(DataError, match=r"not whole|negative|no count"):
                Schema.of(a, kind="counts")
