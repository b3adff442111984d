"""What speed.py, scaling.py and durability.py share: workers that take turns, children whose memory is read, tables that grow on disk.

A worker is a process of one side (ours, a peer, the bare multiplications) that lives through all repetitions: a line of JSON goes in, the
answer comes out as a line of JSON. Sides take turns, so that whatever the machine does in the meantime hits all of them alike.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class PeerError(RuntimeError):
    """A worker or a script ended, or answered with an error."""


def environment(threads: int, *, own: bool) -> dict[str, str]:
    """The environment of a child: so many threads; our own packages on the path only where they belong."""
    env = {k: v for k, v in os.environ.items() if own or k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    return env | {name: str(threads) for name in _THREADS} | {"PYTHONWARNINGS": "ignore"}


class Worker:
    """A process that answers one line of JSON with another.

    Args:
        python: Interpreter.
        script: Path of the script.
        threads: Threads that it may use.
        name: How messages call it.
    """

    def __init__(self, python: str, script: Path, *, threads: int, name: str):
        self.name = name
        env = environment(threads, own=python == sys.executable)
        command = [python, str(script), "--threads", str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        """The answer to a command.

        Raises:
            PeerError: It ended or says what went wrong.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **given}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):  # packages may print
                answer = json.loads(line)
                if "error" in answer:
                    raise PeerError(f"{self.name}: {answer['error']}")
                return answer  # type: ignore[no-any-return]
        raise PeerError(f"{self.name} ended with status {self._process.wait()}; its messages are above.")

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(timeout=60)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def serve(commands: Mapping[str, Any]) -> None:
    """The loop of a worker: each line of stdin names a command and its arguments; what the command returns is printed."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print goes elsewhere
    for line in sys.stdin:
        given = json.loads(line)
        try:
            answer = commands[given.pop("do")](**given)
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


def script(python: str, path: Path, arguments: Sequence[str], *, threads: int) -> dict[str, Any]:
    """The last line of JSON that a script prints.

    Raises:
        PeerError: It failed or printed none.
    """
    env = environment(threads, own=python == sys.executable)
    done = subprocess.run([python, str(path), *arguments], stdout=subprocess.PIPE, text=True, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise PeerError(f"{path.name} ended with status {done.returncode} and {len(lines)} lines of JSON.")
    return json.loads(lines[-1])  # type: ignore[no-any-return]


def say(what: str) -> None:
    """A line, at once."""
    print(f"{time.strftime('%H:%M:%S')}  {what}", flush=True)


def turns(
    sides: Mapping[str, Worker | None], repetitions: int, turn: Callable[[str, Any], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """What each side answers, turn after turn; the first round is not counted."""
    out: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for i in range(repetitions + 1):
        for name, worker in sides.items():
            if i or worker is not None:  # a script that runs alone warms up by itself
                answer = turn(name, worker)
            if i:
                out[name].append(answer)
    return out


def rate(answers: list[dict[str, Any]], what: str, cells: int) -> np.ndarray:
    """Cells per second of each turn."""
    return np.array([a.get("cells", cells * a.get("epochs", 1)) / a[what] for a in answers])


def spent() -> tuple[float, float]:
    """Seconds by the wall, and CPU seconds of this process."""
    return time.perf_counter(), time.process_time()


def resident(field: str = "VmHWM") -> float:
    """MB (10^6 bytes) of this process: ``VmHWM`` the largest so far, ``VmRSS`` now.

    ``ru_maxrss`` of a child is at least what its parent held when it was started, so that Linux' own figure is used where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def machine() -> dict[str, Any]:
    """Where and when: stands in every row that is written."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), name)
    return {"date": datetime.date.today().isoformat(), "cores": os.cpu_count(), "processor": name, "python": platform.python_version()}


class Table:
    """Rows in a CSV file, written as they come; rows that are there already need not be measured again.

    Args:
        name: Of the file, without its ending.
        key: Columns that say which measurement a row is.
        folder: Where; None: benchmarks/results.
        fresh: Forget rows of the file that are measured again.
    """

    def __init__(self, name: str, key: Sequence[str], *, folder: Path | None = None, fresh: bool = False):
        import pandas as pd

        self.path = (folder or RESULTS) / f"{name}.csv"
        self.key, self.fresh = list(key), fresh
        self.rows: list[dict[str, Any]] = []
        self._new: set[tuple[str, ...]] = set()
        if self.path.exists():
            self.rows = pd.read_csv(self.path, dtype={"date": str}).to_dict("records")  # type: ignore[assignment]

    def has(self, **key: Any) -> bool:
        """Whether the measurement is there and need not be made."""
        wanted = self._of(key)
        return wanted in self._new or (not self.fresh and any(self._of(row) == wanted for row in self.rows))

    def add(self, **row: Any) -> None:
        """Write a row; an older one of the same key goes."""
        import pandas as pd

        own = self._of(row)
        self.rows = [r for r in self.rows if self._of(r) != own] + [{**row, **machine()}]
        self._new.add(own)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(self.rows).to_csv(self.path, index=False, float_format="%.6g")

    def frame(self) -> Any:
        """The rows as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def show(self, columns: Sequence[str] | None = None) -> None:
        """Print the table."""
        table = self.frame()
        shown = [c for c in (columns or table.columns) if c in table]
        print(f"\n{self.path.name}: {self.rows[-1]['processor']}, {self.rows[-1]['cores']} cores" if self.rows else "\nno rows", flush=True)
        if len(table):
            print(table[shown].to_string(index=False, float_format=lambda v: f"{v:.4g}"), flush=True)

    def _of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(_text(row.get(k)) for k in self.key)


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def met(value: float, target: float) -> str:
    """What is printed beside a target that is a lower limit."""
    return "met" if value >= target else "missed"
