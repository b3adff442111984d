# SPDX-License-Identifier: BSD-3-Clause
"""Peer: scvi-tools' column of the reliability scorecard (benchmarks/scorecard.py), in its own environment.

    python scorecard_scvi.py --items 1-60 --out OUT.json

Each item runs in a process of its own, forked from one that has imported the package, with a time limit: a segmentation fault, an endless
wait or an ended process is an outcome like any other. An item scores 1 only if the outcome that the item states came: an error before
training whose message names the field and an example, or a result that is finite and right. The first that fails is what is printed.
``null`` marks items for which the package has no such feature, or which are not tried here.
"""

import os

for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(key, "1")

import argparse  # noqa: E402
import json  # noqa: E402
import signal  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import scorecard_scvi_data  # noqa: E402
import scorecard_scvi_files  # noqa: E402

LIMIT = 60.0  # seconds for one item
FAULTS = {**scorecard_scvi_data.FAULTS, **scorecard_scvi_files.FAULTS}
ABSENT = {
    19: "not tried: needs a matrix that does not fit",
    37: "no MMD",
    38: "no MMD",
    39: "no MMD",
    48: "training takes no output path",
    50: "not tried",
    51: "not tried",
    56: "no JSON configuration",
    60: "not tried",
}


def isolated(item: int) -> dict[str, Any]:
    """One item in a forked process: ``{"item", "score", "outcome", "seconds"}``."""
    if item not in FAULTS:
        return {"item": item, "score": None, "outcome": ABSENT.get(item, "no such feature"), "seconds": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        said, start = Path(folder) / "said.json", time.perf_counter()
        child = os.fork()
        if child == 0:
            _answer(item, folder, said)
        status = None
        while status is None and time.perf_counter() - start < LIMIT:
            done, code = os.waitpid(child, os.WNOHANG)
            status = code if done else None
            time.sleep(0.02)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            score, outcome = 0, f"no end within {LIMIT:.0f} s"
        elif said.exists():
            score, outcome = json.loads(said.read_text())
        else:
            end = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit status {os.WEXITSTATUS(status)}"
            score, outcome = 0, f"crash: the process ended with {end}"
        return {"item": item, "score": score, "outcome": outcome, "seconds": round(time.perf_counter() - start, 2)}


def _answer(item: int, folder: str, said: Path) -> None:
    os.chdir(folder)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        answer = FAULTS[item]()
    except BaseException as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        answer = 0, f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({Path(at.filename).name})"
    said.write_text(json.dumps([int(answer[0]), str(answer[1])[:400]]))
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", default="1-60", help="numbers and ranges: 1-42,57")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    items: list[int] = []
    for part in asked.items.split(","):
        first, _, last = part.partition("-")
        items += range(int(first), int(last or first) + 1)
    rows = []
    for item in items:
        rows.append(isolated(item))
        print(json.dumps(rows[-1]), flush=True)
    asked.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
