"""Writes docs/reliability.md from the results of scorecard.py, kills.py, soak.py, fuzz.py, limits.py and durability.py; measures nothing.

python benchmarks/scorecard_page.py
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from scorecard_items import ANSWERS, GROUPS, ITEMS

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "reliability.md"
PEER = "scvi-tools 1.4.2"

HEAD = """# Reliability: what trifold does about bad input and faults

Written by `benchmarks/scorecard_page.py` from the results of the scripts that it names.

## Sixty faults

An item scores 1 if the stated error or result comes, the message names the field and an example, no input is changed,
nothing half-written is left, the model saved before still loads, and all this takes at most {seconds:g} s and {mb:g} MB.
The tests in `tests/` that carry its number say so; `benchmarks/scorecard.py` runs them and counts, and causes the same
faults in {peer}, where it has the feature ("n/a": it has not, or it was not tried). "not so: ..." says what should have
held and did not. The list of faults and what should come of each are ours, so that the other column says what a user
meets there, not how good a package it is.

**trifold: {ours} of {items}. {peer}: {theirs}.** ({date})
"""


def rows(name: str) -> list[dict[str, str]]:
    """Rows of a CSV file of results."""
    with (RESULTS / name).open(newline="") as f:
        return list(csv.DictReader(f))


def scored(found: list[dict[str, Any]]) -> str:
    """``"9 of 40 (20 n/a)"``."""
    known = [r["score"] for r in found if r["score"] is not None]
    return f"{sum(known)} of {len(known)} that it has ({len(found) - len(known)} n/a)"


def plain(text: str) -> str:
    """A text in a cell of a table: one line, short."""
    text = " ".join(text.split()).replace("|", "/").replace("<", "‹").replace(">", "›")
    return text if len(text) < 130 else text[:127] + "…"


def faults(record: dict[str, Any]) -> list[str]:
    """A table for each group of items."""
    mine = {r["item"]: r for r in record["trifold"]}
    theirs = {r["item"]: r for found in record["peer"].values() for r in found}
    lines = []
    for name, (first, last) in GROUPS.items():
        items = range(first, last + 1)
        lines += [f"\n### {name}: {sum(mine[k]['score'] for k in items)} of {len(items)}", ""]
        lines += [f"| | fault | trifold | | {PEER} | |", "|---|---|---|---|---|---|"]
        for k in items:
            other = theirs.get(k, {"score": None, "outcome": "not tried"})
            said = "n/a" if other["score"] is None else other["score"]
            lines.append(f"| {k} | {ITEMS[k]} | {ANSWERS[k]} | {mine[k]['score']} | {plain(other['outcome'])} | {said} |")
    missing = [r for r in mine.values() if not r["score"]]
    return lines + [f"\nItem {r['item']} is 0: {plain(r['reason'])}" for r in missing]


def kills() -> list[str]:
    found = rows("kills.csv")
    return [
        "\n## Kills, signals, long runs",
        "",
        "`benchmarks/kills.py` ends a process by `kill -9` at random moments while it writes, and reads what is there after:",
        "",
        "| while | kills | whole after | of them in the middle of a write |",
        "|---|---|---|---|",
        *(f"| {r['what']} | {r['kills']} | {r['whole']} | {r['in the middle of a write']} |" for r in found),
    ]


def soak() -> list[str]:
    (r,) = rows("soak.csv")
    many = sum(int(r[name]) for name in ("SIGTERM", "SIGINT", "SIGKILL"))
    return [
        f"\n`benchmarks/soak.py` trained for {round(int(r['seconds']) / 60)} minutes ({int(r['epochs']):,} epochs), once undisturbed and "
        f"once with a random signal about every {float(r['every']):g} s ({r['SIGTERM']} SIGTERM, {r['SIGINT']} SIGINT, "
        f"{r['SIGKILL']} SIGKILL), resumed by a new process after each of the {many}. SHA-256 of all weights at the end: "
        f"**{r['result']}**; files left beside the runs: {r['left']}.",
        "",
        "`benchmarks/durability.py` has the same for random steps, beside controls in which a part of the state is left out "
        "([performance.md](performance.md)).",
    ]


def fuzz() -> list[str]:
    found = rows("fuzz.csv")
    lines = [
        "\n## Fuzzing",
        "",
        "`make fuzz` (`benchmarks/fuzz.py`) draws odd AnnData, and damages bytes of run folders, h5ad files and zarr folders. Only "
        "trifold's own exceptions may come of it; anything else counts as foreign, the end of a process as a crash.",
        "",
        "| target | executions | worked | distinct errors of ours | foreign | crashes or hangs |",
        "|---|---|---|---|---|---|",
    ]
    for target in dict.fromkeys(r["target"] for r in found):
        mine = [r for r in found if r["target"] == target]
        worked = [r for r in mine if r["outcome"].startswith("works")]
        bugs, crashes = ([r for r in mine if r["outcome"].startswith(words)] for words in (("BUG",), ("CRASH", "HANG")))
        done, well = (sum(int(r["executions"]) for r in group) for group in (mine, worked))
        ours = len(mine) - len(worked) - len(bugs) - len(crashes)
        lines.append(f"| {target} | {done:,} | {well:,} | {ours} | {len(bugs)} | {len(crashes)} |")
    return lines


def limits() -> list[str]:
    found = rows("limits.csv")
    few, many = ([r for r in found if r["item"] == "L8"][k] for k in (0, -1))
    small, large = ([r for r in found if r["item"] == "L9"][k] for k in (0, -1))
    cycles = {r["what"]: r["detail"] for r in rows("durability.csv") if r["item"] == "L7"}
    return [
        "\n## Limits",
        "",
        f"`benchmarks/limits.py`: an epoch with {int(many['count']):,} conditions of ten cells each takes {float(many['epoch s']):.1f} s, "
        f"with {few['count']} conditions {float(few['epoch s']):.1f} s; the MMD of a step {float(many['MMD ms']):.1f} and "
        f"{float(few['MMD ms']):.1f} ms; losses are finite. Curvature of a decoder of {int(large['count']):,} genes holds "
        f"{float(large['MB above']):.0f} MB above the model, of {int(small['count']):,} genes {float(small['MB above']):.0f} MB (the "
        f"weights themselves are {float(large['weights MB']):.0f} and {float(small['weights MB']):.0f} MB).",
        "",
        "`benchmarks/durability.py`, fit, save, load and predict again and again: "
        + "; ".join(f"{what}: {found}" for what, found in cycles.items())
        + ".",
        "",
        "What is promised about files of others, and what is not: [SECURITY.md](../SECURITY.md).",
    ]


def page() -> str:
    """The whole page."""
    record = json.loads((RESULTS / "scorecard.json").read_text())
    theirs = [r for found in record["peer"].values() for r in found]
    head = HEAD.format(
        **record["limits"],
        peer=PEER,
        ours=sum(r["score"] for r in record["trifold"]),
        items=len(record["trifold"]),
        theirs=scored(theirs),
        date=record["machine"]["date"],
    )
    return "\n".join([head.rstrip(), *faults(record), *kills(), *soak(), *fuzz(), *limits()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
