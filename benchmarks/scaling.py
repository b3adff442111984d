"""How time per cell and memory grow with the number of cells and of genes, in memory and streamed from disk.

    python benchmarks/scaling.py                                    # 10^4 to 10^6 cells x 2,000 genes, then 10^3 to 6*10^4 genes
    python benchmarks/scaling.py --part cells --cells 10000 100000 --source memory h5ad
    python benchmarks/scaling.py --folder FOLDER                    # keep the simulated files there (2.5 GB for 10^6 cells)

Counts are 10 % filled (speed_data.py), written chunk by chunk to h5ad files with uint16 values and int32 indices, and converted to zarr
stores by trifold. Every run is a process of its own: it reads the whole file by anndata, or streams it, and trains the network of speed.py
for at least --steps minibatches and one whole epoch. Files are read through once before, so that the disk's cache is warm. Time per cell is
that of whole epochs after the first, or of the only one, of which the CPU seconds are not told apart from those of the set-up (looking at
every value once, starting values: ``set-up, s``). Memory is the largest resident set of the process, and how far that lies above the one
after its imports. Medians over --repetitions runs, sizes and sources in turns. Tables go to results/scaling_cells.csv and
results/scaling_genes.csv; rows that are there already are kept without --fresh.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from speed_data import pool, repeated
from speed_workers import Table, machine, met, resident, say, script

FILLED, POOL, HIDDEN, LATENT = 0.1, 40_000_000, 128, 10
FLAT, STREAMED, MEMORY, STREAM_MEMORY = 0.10, 0.80, 2500.0, 600.0
SOURCES = ("memory", "h5ad", "zarr")


# -- files ---------------------------------------------------------------------------------------------------------------------------------


def write_h5ad(path: Path, cells: int, genes: int) -> None:
    """An h5ad file of simulated cells, written in chunks; what is held at once does not grow with the cells."""
    import h5py

    source = pool(min(cells, max(256, POOL // genes)), genes, filled=FILLED)
    words = h5py.string_dtype()
    unfinished = path.with_suffix(".part")
    with h5py.File(unfinished, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
            file.create_group(name).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        x = file.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": np.array([cells, genes])})
        made = {"data": np.uint16, "indices": np.int32}
        for name, dtype in made.items():
            x.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(1 << 18,))
        pointers, codes = [np.zeros(1, dtype=np.int64)], []
        for part in repeated(source, cells):
            before, more = int(pointers[-1][-1]), part.counts.nnz
            for name, dtype in made.items():
                x[name].resize((before + more,))
                x[name][before:] = getattr(part.counts, name).astype(dtype, copy=False)
            pointers.append(before + part.counts.indptr[1:].astype(np.int64))
            codes.append(part.batch.astype(np.int8))
        indptr = np.concatenate(pointers)
        x["indptr"] = indptr.astype(np.int32) if indptr[-1] < 2**31 else indptr
        for name, size, prefix in (("obs", cells, "cell"), ("var", genes, "gene")):
            frame = file.create_group(name)
            frame.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
            frame.attrs["column-order"] = np.array(["batch"] if name == "obs" else [], dtype=words)
            frame.create_dataset("_index", data=[f"{prefix}_{i}" for i in range(size)], dtype=words)
            frame["_index"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        column = file["obs"].create_group("batch")
        column.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
        column["codes"] = np.concatenate(codes)
        column.create_dataset("categories", data=["batch_0", "batch_1"], dtype=words)
        for name, kind in (("batch/codes", "array"), ("batch/categories", "string-array")):
            file["obs"][name].attrs.update({"encoding-type": kind, "encoding-version": "0.2.0"})
        for name in ("data", "indices", "indptr"):
            x[name].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    unfinished.rename(path)


def convert(path: Path, out: Path) -> None:
    """The h5ad file as a shuffled, sharded zarr store."""
    from trifold.data.convert import convert as converted

    converted([path], out)


def warm(path: Path) -> None:
    """Read every byte once, so that it is in the disk's cache."""
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass


# -- one run -------------------------------------------------------------------------------------------------------------------------------


def train(path: Path, source: str, batch: int, steps: int) -> dict[str, Any]:
    """One training in this process: its seconds and its memory, MB."""
    import anndata as ad
    import h5py  # noqa: F401
    import lightning_fabric  # noqa: F401
    import zarr  # noqa: F401

    import trifold as tri
    from speed_ours import composed

    imported = resident()
    began = time.perf_counter()
    data: Any = ad.read_h5ad(path) if source == "memory" else str(path)
    schema = tri.Schema.of(data, spurious="batch")
    loaded = resident("VmRSS")
    cells = tri.open(data).n
    model = composed(schema, "nb", batch, HIDDEN, LATENT, "batch")
    epochs = 1 if cells >= 4 * steps * batch else 1 + math.ceil(steps * batch / cells)
    seconds: list[float] = []
    busy: list[float] = []  # CPU seconds of all threads at the end of each epoch

    def on_epoch(row: dict[str, float]) -> None:
        seconds.append(row["seconds"])
        busy.append(time.process_time())

    model.fit(data, epochs=epochs, device="cpu", progress=False, on_epoch=on_epoch)
    whole = time.perf_counter() - began
    timed = seconds if epochs == 1 else seconds[1:]
    return {
        "cells": cells,
        "genes": len(schema.genes),
        "cells/s": cells * len(timed) / sum(timed),
        "cells/CPU s": cells * len(timed) / (busy[-1] - busy[0]) if epochs > 1 else math.nan,
        "epochs": epochs,
        "set-up, s": whole - sum(seconds),
        "import, MB": imported,
        "loaded, MB": loaded,
        "peak, MB": resident(),
        "above import, MB": resident() - imported,
        "loss": float(model.history.rows[-1]["train/loss"]),
    }


# -- tables --------------------------------------------------------------------------------------------------------------------------------


class Files:
    """The simulated files, each made once, in a process of its own so that this one stays small."""

    def __init__(self, folder: Path, threads: int):
        self.folder, self.threads = folder, threads
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, source: str, cells: int, genes: int) -> Path:
        """The file that the source reads."""
        path = self.folder / f"{cells}_{genes}.h5ad"
        if not path.exists():
            say(f"writing {path.name}")
            script(sys.executable, Path(__file__), ["--do", "write", str(path), str(cells), str(genes)], threads=1)
        store = path.with_suffix(".zarr")
        if source == "zarr" and not store.exists():
            say(f"converting to {store.name}")
            script(sys.executable, Path(__file__), ["--do", "convert", str(path), str(store)], threads=self.threads)
        return store if source == "zarr" else path


def measure(given: argparse.Namespace, files: Files, table: Table, todo: list[tuple[str, int, int]]) -> None:
    """Fill the table: medians over repetitions, everything in turns."""
    found: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    versions = {"batch": given.batch, "threads": given.threads}
    for i in range(given.repetitions):
        for source, cells, genes in todo:
            if table.has(source=source, cells=cells, genes=genes, **versions) and (source, cells, genes) not in found:
                continue
            path = files(source, cells, genes)
            arguments = ["--do", "train", str(path), source, str(given.batch), str(given.steps)]
            answer = script(sys.executable, Path(__file__), arguments, threads=given.threads)
            runs = found.setdefault((source, cells, genes), [])
            runs.append(answer)
            medians = {k: float(np.median([r[k] for r in runs])) for k in answer if k not in ("cells", "genes")}
            medians |= {"us/cell": 1e6 / medians["cells/s"], "ns/(cell x gene)": 1e9 / medians["cells/s"] / genes}
            table.add(source=source, cells=cells, genes=genes, **versions, repetitions=i + 1, **medians)
            shown = f"{answer['cells/s']:.0f} cells/s, peak {answer['peak, MB']:.0f} MB"
            say(f"{source}, {cells} x {genes}, run {i + 1}: {shown}, {answer['above import, MB']:.0f} above the import")


def by_cells(given: argparse.Namespace, files: Files) -> None:
    """Time per cell and memory by number of cells and by source."""
    table = Table("scaling_cells", ("source", "cells", "genes", "batch", "threads"), folder=given.out, fresh=given.fresh)
    genes = 2_000
    measure(given, files, table, [(source, cells, genes) for cells in given.cells for source in given.source])
    table.show(COLUMNS)
    rows = {(r["source"], r["cells"]): r for r in table.rows if r["batch"] == given.batch and r["threads"] == given.threads}
    memory = {cells: row for (source, cells), row in rows.items() if source == "memory"}
    print()
    if len(memory) > 1:
        slowest, quickest = max(r["us/cell"] for r in memory.values()), min(r["us/cell"] for r in memory.values())
        spread = slowest / quickest - 1
        where = f"over {min(memory)} to {max(memory)} cells"
        print(f"in memory, time per cell differs by {spread:.1%} {where}: {met(-spread, -FLAT)} ({FLAT:.0%})")
    for (source, cells), row in sorted(rows.items()):
        if source == "memory" and cells >= 10**6:
            print(f"L1, {cells} cells in memory: peak {row['peak, MB']:.0f} MB: {met(-row['peak, MB'], -MEMORY)} ({MEMORY:g} MB)")
        elif source != "memory":
            above = row["above import, MB"]
            line = f"{cells} cells streamed from {source}: {above:.0f} MB above the import"
            line += f": {met(-above, -STREAM_MEMORY)} ({STREAM_MEMORY:g} MB)"
            if cells in memory:
                share = row["cells/s"] / memory[cells]["cells/s"]
                line += f"; {100 * share:.0f} % of the speed in memory: {met(share, STREAMED)} ({STREAMED:.0%})"
            print(("L2, " if cells >= 10**6 else "") + line, flush=True)


def by_genes(given: argparse.Namespace, files: Files) -> None:
    """Time per cell and gene, and memory, by number of genes, in memory."""
    table = Table("scaling_genes", ("source", "cells", "genes", "batch", "threads"), folder=given.out, fresh=given.fresh)
    measure(given, files, table, [("memory", given.gene_cells, genes) for genes in given.genes])
    table.show(COLUMNS)
    asked = {"cells": given.gene_cells, "batch": given.batch, "threads": given.threads}
    each = [r["ns/(cell x gene)"] for r in table.rows if all(r[k] == v for k, v in asked.items())]
    print(f"\ntime per cell and gene: {min(each):.2f} to {max(each):.2f} ns, {max(each) / min(each) - 1:.0%} apart", flush=True)


COLUMNS = (
    "source",
    "cells",
    "genes",
    "batch",
    "threads",
    "repetitions",
    "epochs",
    "cells/s",
    "cells/CPU s",
    "us/cell",
    "ns/(cell x gene)",
    "set-up, s",
)
COLUMNS += ("import, MB", "loaded, MB", "peak, MB", "above import, MB", "loss")


def child(what: str, given: list[str]) -> None:
    """What a process of its own does, and its answer."""
    path, rest = Path(given[0]), given[1:]
    answer: dict[str, Any] = {}
    if what == "train":
        warm(path)
        answer = train(path, rest[0], int(rest[1]), int(rest[2]))
    elif what == "write":
        write_h5ad(path, int(rest[0]), int(rest[1]))
    else:
        convert(path, Path(rest[0]))
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Measure, print, write."""
    if sys.argv[1:2] == ["--do"]:
        child(sys.argv[2], sys.argv[3:])
        return
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--part", nargs="+", choices=("cells", "genes"), default=["cells", "genes"])
    ask.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    ask.add_argument("--genes", type=int, nargs="+", default=[1_000, 3_000, 10_000, 30_000, 60_000])
    ask.add_argument("--gene-cells", type=int, default=10_000, help="cells of the part genes")
    ask.add_argument("--source", nargs="+", choices=SOURCES, default=list(SOURCES))
    ask.add_argument("--batch", type=int, default=1024)
    ask.add_argument("--steps", type=int, default=200, help="minibatches at least, after the first epoch")
    ask.add_argument("--repetitions", type=int, default=3)
    ask.add_argument("--threads", type=int, default=1)
    ask.add_argument("--folder", type=Path, help="where the files are written, and kept; default: a temporary folder")
    ask.add_argument("--out", type=Path, help="where the CSV files are written; default: benchmarks/results")
    ask.add_argument("--fresh", action="store_true", help="measure rows again that are there already")
    given = ask.parse_args()
    here = machine()
    say(f"{here['processor']}, {here['cores']} cores, Python {here['python']}, {here['date']}")
    with tempfile.TemporaryDirectory() as folder:
        files = Files(given.folder or Path(folder), given.threads)
        for part, make in (("cells", by_cells), ("genes", by_genes)):
            if part in given.part:
                make(given, files)


if __name__ == "__main__":
    main()
