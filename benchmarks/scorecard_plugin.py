"""A pytest plugin that writes one JSON line for each test: outcome, seconds and peak memory; scorecard.py uses it.

Seconds are wall time of set-up and call. A test that starts whole processes says by ``record_property("fault_seconds", s)`` how long the
slowest of its faults took, from the moment it was caused to its stated end. Memory is the most that this process held resident during the
test: the kernel's high-water mark, which is set back before each test where the system allows it (else the mark of the whole process, which
is never less), or that of a child process that the test waited for, if it was the largest so far.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest

_REPORT = "TRIFOLD_SCORECARD"
_outcome: dict[str, dict[str, Any]] = {}


def _peak() -> float:
    """MB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _children() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def _cpu() -> float:
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    children, start, cpu = _children(), time.perf_counter(), _cpu()
    row = _outcome[item.nodeid] = {"test": item.name, "node": item.nodeid, "outcome": "missing", "reason": ""}
    try:
        return (yield)
    finally:
        after = _children()
        row["seconds"], row["cpu_seconds"] = round(time.perf_counter() - start, 3), round(_cpu() - cpu, 3)
        row["mb"] = round(max(_peak(), after if after > children else 0.0), 1)
        with Path(os.environ[_REPORT]).open("a") as f:
            f.write(json.dumps(row) + "\n")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    row = _outcome[report.nodeid]
    row.update((name, value) for name, value in report.user_properties if name == "fault_seconds")
    if report.failed:
        row["outcome"], row["reason"] = "failed", _last(report.longreprtext)
    elif report.skipped and row["outcome"] != "failed":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        row["outcome"], row["reason"] = "skipped", reason
    elif report.when == "call" and row["outcome"] == "missing":
        row["outcome"] = "passed"


def _last(text: str) -> str:
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return (errors[0] if errors else text.strip().splitlines()[-1])[:300]
