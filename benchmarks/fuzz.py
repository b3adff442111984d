"""Fuzzing for some minutes: odd data, and damaged bytes of run folders, h5ad files and zarr folders.

    python benchmarks/fuzz.py --minutes 10
    python benchmarks/fuzz.py --minutes 1 --target h5ad --first 1000

Each target runs in forked processes, so that a segmentation fault, or memory without bound (RLIMIT_AS), is counted as a crash and the next
seed goes on; one that says nothing for a minute is ended and counted as a hang. Allowed outcomes: it works (finite, in order, inputs
unchanged) or a TrifoldError. Prints executions, distinct errors (class and first words), crashes and hangs; writes results/fuzz.csv; the
exit status is 1 if anything else came, with an example that gives the seed.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "fuzz"))

SHARES = {"data": 0.35, "run": 0.1, "agreeing run": 0.2, "h5ad": 0.1, "odd h5ad": 0.15, "zarr": 0.1}  # of the time


def tasks(folder: Path) -> dict[str, list[Callable[[int], Any]]]:
    """Target -> its tasks, one for each file of a run folder."""
    import targets

    import trifold
    from trifold.store import FILES, MANIFEST

    a = targets.study()
    model = trifold.trvae(trifold.Schema.of(a, "counts", condition="condition"), **targets.TINY).fit(a, **targets.QUICK)
    run = model.save(folder / "sound")

    def place(name: str) -> Path:
        made = folder / name
        made.mkdir()
        return made

    return {
        "data": [targets.odd_data()],
        "run": [targets.load_damaged(run, name, place(f"damaged-{name}")) for name in (*FILES, MANIFEST)],
        "agreeing run": [targets.agree_and_load(run, name, place(f"agreeing-{name}")) for name in FILES],
        "h5ad": [targets.read_h5ad(place("h5ad"))],
        "odd h5ad": [targets.read_odd_h5ad(place("odd-h5ad"))],
        "zarr": [targets.read_zarr(place("zarr"))],
    }


def fuzz(task: Callable[[int], Any], until: float, first: int) -> tuple[Counter[str], dict[str, str]]:
    """Run one task until a time, in as many processes as it takes."""
    from harness import in_child

    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    seed = first
    while time.monotonic() < until:
        seed, new, found = in_child(task, seed, until=until)
        counts += new
        examples = {**found, **examples}
    return counts, examples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--target", choices=SHARES, help="only this one, for the whole time")
    parser.add_argument("--first", type=int, default=0, help="first seed: another one looks elsewhere")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fuzz.csv")
    asked = parser.parse_args()
    from harness import bad

    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for name, made in tasks(Path(folder)).items():
            share = 1.0 if asked.target else SHARES[name]
            if asked.target not in (None, name):
                continue
            counts: Counter[str] = Counter()
            examples: dict[str, str] = {}
            for task in made:
                new, found = fuzz(task, time.monotonic() + 60 * asked.minutes * share / len(made), asked.first)
                counts += new
                examples = {**found, **examples}
            crashes, hangs, bugs = (sum(n for k, n in bad(counts).items() if k.startswith(word)) for word in ("CRASH", "HANG", "BUG"))
            worked = [k for k in counts if k.startswith("works")]
            refused, done = len(counts) - len(bad(counts)) - len(worked), sum(counts.values())
            print(f"{name}: {done} executions, {sum(counts[k] for k in worked)} worked, {refused} distinct errors of ours, ", end="")
            print(f"{bugs} foreign, {crashes} crashes, {hangs} hangs")
            for what, n in counts.most_common():
                print(f"  {n:>8}  {what}")
                rows.append({"target": name, "outcome": what, "executions": n})
            for what in bad(counts):
                print(f"\n{what}\n{examples[what]}")
            wrong += len(bad(counts))
            sys.stdout.flush()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with asked.out.open("w", newline="") as f:
        table = csv.DictWriter(f, ["target", "outcome", "executions"])
        table.writeheader()
        table.writerows(rows)
    print(f"\n{sum(r['executions'] for r in rows)} executions; {wrong} kinds of outcome that are not allowed; {asked.out}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
