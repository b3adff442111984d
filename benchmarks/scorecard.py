"""The reliability scorecard: sixty faults, and whether trifold and a peer do what is asked for each.

    python benchmarks/scorecard.py
    python benchmarks/scorecard.py --items 1-42 --peer scvi=ENV/bin/python

An item scores 1 if every test that carries its number (``test_item_07_...``) passes, none is skipped, there is at least one, and each fault
takes at most 5 s and the process at most 1 GB; the reason stands beside every 0. The tests themselves check the message, that inputs are
unchanged and that nothing half-written is left. Slow tests are run too. A test that takes too long is run once more, alone, and the better
time counts, since others may use the machine; tests that cause one fault many times (``scorecard_items.REPEATED``) are measured per fault,
and those that start processes from the moment at which they cause it (``scorecard_plugin``).

The peer runs in an environment of its own (``peers/scorecard_scvi.py``): the same faults where it has the feature, "n/a" where it has not.
Writes results/scorecard.json; the exit status is 1 if one of the chosen items is 0.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scorecard_items import GROUPS, ITEMS, chosen, items_of, repeats

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SECONDS, MB = 5.0, 1024.0  # for one fault, for the process
Row = dict[str, Any]


def test_files() -> list[str]:
    """Test files that hold a numbered test."""
    return sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("test_*.py") if "def test_item" in p.read_text())


def run_tests(selection: list[str], items: list[int]) -> list[Row]:
    """One pytest session over files or test identifiers; one row for each numbered test that it ran.

    Raises:
        SystemExit: pytest could not collect the tests.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.jsonl"
        report.touch()
        env = {**os.environ, "TRIFOLD_SCORECARD": str(report), "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        words = "test_items_ or " + " or ".join(f"test_item_{k:02d}" for k in items)
        command = [sys.executable, "-m", "pytest", "-p", "scorecard_plugin", "-m", "slow or not slow", "-k", words, "--tb=short"]
        command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", *selection]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        rows = [json.loads(line) for line in report.read_text().splitlines()]
        if not rows:
            raise SystemExit(f"pytest ran no test:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
        for line in done.stdout.splitlines():
            if line.startswith("ERROR "):
                print(line)
        return rows


def of_fault(row: Row) -> float:
    """Seconds of one fault."""
    return float(row.get("fault_seconds", row["seconds"] / repeats(row["test"])))


def too_much(row: Row) -> str:
    """Why a test took too long or held too much; empty if it did not."""
    if (each := of_fault(row)) > SECONDS:
        return f"{each:.1f} s"
    return f"{row['mb']:.0f} MB" if row["mb"] > MB else ""


def judge(rows: list[Row], item: int) -> Row:
    """The score of one item: 1 or 0, with the reason."""
    mine = [r for r in rows if item in items_of(r["test"])]
    reasons = [f"{r['outcome']}: {r['test']}: {r['reason']}" for r in mine if r["outcome"] != "passed"]
    reasons += [f"{too_much(r)}: {r['test']}" for r in mine if r["outcome"] == "passed" and too_much(r)]
    if not mine:
        reasons = ["no test carries its number"]
    return {
        "item": item,
        "fault": ITEMS[item],
        "score": int(not reasons),
        "tests": len(mine),
        "slowest_s": round(max(map(of_fault, mine), default=0.0), 2),
        "mb": max((r["mb"] for r in mine), default=0.0),
        "reason": "; ".join(reasons),
    }


def ours(items: list[int]) -> list[Row]:
    """trifold's column."""
    rows = run_tests(test_files(), items)
    again = [r for r in rows if r["outcome"] == "passed" and too_much(r)]
    for row in again:
        for second in run_tests([row["node"]], items):
            if second["node"] == row["node"] and second["outcome"] == "passed":
                row.update({name: min(row[name], second[name]) for name in ("seconds", "fault_seconds", "mb") if name in row})
    return [judge(rows, k) for k in items]


def peers(python: str, items: list[int]) -> dict[int, Row]:
    """The peer's column: item -> ``{"score": 1, 0 or null, "outcome": text}``."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "peer.json"
        command = [python, str(HERE / "peers" / "scorecard_scvi.py"), "--items", ",".join(map(str, items)), "--out", str(out)]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        subprocess.run(command, check=True, env=env, cwd=folder)
        return {r["item"]: r for r in json.loads(out.read_text())}


def table(rows: list[Row], peer: dict[int, Row]) -> None:
    """Print both columns, totals by group, and the reason of every 0."""
    print(f"{'item':>4}  {'fault':<52} {'trifold':>7} {'tests':>5} {'s':>6} {'MB':>5}" + ("  peer" if peer else ""))
    for name, (first, last) in GROUPS.items():
        group = [r for r in rows if first <= r["item"] <= last]
        if not group:
            continue
        print(f"\n{name}: {sum(r['score'] for r in group)} of {len(group)}" + (f"; peer {total(peer, first, last)}" if peer else ""))
        for r in group:
            line = f"{r['item']:>4}  {r['fault']:<52} {r['score']:>7} {r['tests']:>5} {r['slowest_s']:>6.2f} {r['mb']:>5.0f}"
            found = peer.get(r["item"])
            print(line + (f"  {'n/a' if found['score'] is None else found['score']:>4}  {found['outcome'][:110]}" if found else ""))
    print(f"\ntrifold: {sum(r['score'] for r in rows)} of {len(rows)}" + (f"; peer: {total(peer, 1, 60)}" if peer else ""))
    for r in rows:
        if not r["score"]:
            print(f"  {r['item']}: {r['reason'][:400]}")


def total(peer: dict[int, Row], first: int, last: int) -> str:
    """``"9 of 40 (20 n/a)"``."""
    scores = [r["score"] for k, r in peer.items() if first <= k <= last]
    known = [s for s in scores if s is not None]
    return f"{sum(known)} of {len(known)} ({len(scores) - len(known)} n/a)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", default="", help="numbers and ranges, 1-42,57; all sixty if not given")
    parser.add_argument("--peer", default="", metavar="scvi=PYTHON", help="the interpreter of an environment with scvi-tools")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scorecard.json")
    asked = parser.parse_args()
    items = chosen(asked.items)
    name, _, python = asked.peer.partition("=")
    if name not in ("", "scvi") or (name and not python):
        parser.error(f"--peer must be scvi=PYTHON; found {asked.peer!r}")
    rows = ours(items)
    peer = peers(python, items) if python else {}
    table(rows, peer)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "system": platform.system(), "processor": platform.machine()}
    machine["date"] = datetime.date.today().isoformat()
    record = {
        "limits": {"seconds": SECONDS, "mb": MB},
        "machine": machine,
        "trifold": rows,
        "peer": {name: list(peer.values())} if peer else {},
    }
    asked.out.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(any(not r["score"] for r in rows))


if __name__ == "__main__":
    main()
