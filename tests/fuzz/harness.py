"""What the fuzz tests and benchmarks/fuzz.py share: allowed outcomes, inputs unchanged, damaged bytes, and a batch in a child process."""

from __future__ import annotations

import copy
import faulthandler
import json
import os
import random
import re
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from trifold.errors import TrifoldError

MEMORY = 4 << 30  # bytes of address space that a child may map beyond what it has
Outcome = tuple[str, str]  # what happened, and where if it must not
SILENCE = 60.0  # seconds after which a child that says nothing is ended


def seconds(default: float) -> float:
    """How long to fuzz: TRIFOLD_FUZZ_SECONDS, or the default of the ordinary suite."""
    return float(os.environ.get("TRIFOLD_FUZZ_SECONDS", default))


def fingerprint(data: Any) -> bytes:
    """Everything of the input that a careless reader might change."""
    if hasattr(data, "obs_names"):
        root = data._adata_ref if data.is_view else data
        raw = root.raw.X if root.raw is not None else None
        parts = [root.X, raw, *root.layers.values(), *root.obsm.values()]
        return b"|".join([*map(_bytes, parts), _frame(root.obs), _frame(root.var), repr(sorted(root.uns)).encode()])
    return _bytes(data)


def _bytes(m: Any) -> bytes:
    if isinstance(m, pd.DataFrame):
        return _frame(m)
    if sp.issparse(m):
        arrays = [getattr(m, k) for k in ("data", "indices", "indptr", "row", "col") if hasattr(m, k)]
        return b",".join(_bytes(a) for a in arrays)
    if isinstance(m, np.ndarray):
        return repr((m.dtype.str, m.shape, m.tolist())).encode("utf-8", "surrogatepass")
    return repr(type(m)).encode()


def _frame(frame: pd.DataFrame) -> bytes:
    columns = [(str(name), str(column.dtype), [repr(v) for v in column.tolist()]) for name, column in frame.items()]
    return repr((columns, list(frame.index))).encode("utf-8", "surrogatepass")


def outcome(act: Callable[[], Any]) -> Outcome:
    """(what happened, where): ``"works"``, the class and first words of a TrifoldError, or ``"BUG: ..."`` for anything else.

    If ``act`` returns text, it says how far it came: ``"works: trained"``.

    Warnings of ours are allowed; others, which a user could not act on, are not looked at.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            far = act()
        except TrifoldError as error:
            return first_words(error), ""
        except Exception as error:
            return f"BUG: {first_words(error)}", "".join(traceback.format_exception(error)[-6:])
    return f"works{f': {far}' if far else ''}", ""


def first_words(error: BaseException) -> str:
    """Class and first words, without numbers and names, so that like errors count as one."""
    words = [w for w in str(error).split() if re.fullmatch(r"[A-Za-z]+(\.(json|csv|safetensors))?[.,:;]?", w)]
    return f"{type(error).__name__}: {' '.join(words[:7])}"


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four of: a flipped bit, another byte, an odd number, a piece cut, doubled, zeroed or moved, truncation."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not out:
            return bytes(out)
        at, how = rng.randrange(len(out)), rng.randrange(8)
        size = min(len(out) - at, rng.choice((1, 2, 4, 8, 64, 512)))
        if how == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            out[at] = rng.randrange(256)
        elif how == 2:
            number = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)).to_bytes(8, "little")
            out[at : at + size] = number[:size] if size < 8 else number + bytes(out[at + 8 : at + size])
        elif how == 3:
            del out[at : at + size]
        elif how == 4:
            out[at:at] = out[at : at + size]
        elif how == 5:
            out[at : at + size] = bytes(size)
        elif how == 6:
            to = rng.randrange(len(out))
            out[to : to + size] = out[at : at + size]
        else:
            del out[at:]
    return bytes(out)


ODD = (
    None,
    True,
    False,
    0,
    -1,
    1,
    0.5,
    1e400,
    2**64,
    2**4000,
    -0.0,
    "",
    "x",
    "\x00",
    "trifold.nets:MLP",
    "os:system",
    [],
    {},
    [[]],
    [0],
    {"": 0},
)


def mutated(value: Any, rng: random.Random) -> Any:
    """Plain data with one part of it replaced by something odd, removed, doubled, or put under another key; a copy."""
    out = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []
    todo = [out]
    while todo:
        here = todo.pop()
        keys = list(here) if isinstance(here, dict) else list(range(len(here))) if isinstance(here, list) else []
        places += [(here, k) for k in keys]
        todo += [here[k] for k in keys]
    if not places:
        return rng.choice(ODD)
    parent, key = rng.choice(places)
    how = rng.randrange(7)
    if how == 0:
        del parent[key]
    elif how == 1:
        other, name = rng.choice(places)
        parent[key] = copy.deepcopy(other[name]) if name in other or (isinstance(other, list) and name < len(other)) else None
    elif how == 2 and isinstance(parent, dict):
        parent[rng.choice(("", "x", "kind", "class", "name"))] = parent.pop(key)
    elif how == 3 and isinstance(parent[key], (int, float)):
        parent[key] = rng.choice((-1, 0, 10**6, 10**12, 2**63, 1e308, -parent[key], str(parent[key])))
    elif how == 4:
        parent[key] = [parent[key]] * 2
    elif how == 5:
        parent[key] = {"x": parent[key]}
    else:
        parent[key] = copy.deepcopy(rng.choice(ODD))
    return out


def in_child(task: Callable[[int], list[Outcome]], start: int, *, until: float) -> tuple[int, Counter[str], dict[str, str]]:
    """Run ``task(seed)`` for seeds from ``start`` on in a forked process, until a time, and count the outcomes.

    A child that dies counts as one crash, one that says nothing for a minute is ended and counts as one hang, with the seed that it was at.

    Args:
        task: Gives the outcomes of one seed.
        start: First seed.
        until: ``time.monotonic()`` at which to stop.

    Returns:
        (next seed, outcome -> how often, outcome -> an example).
    """
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.touch()
        child = os.fork()
        if child == 0:
            _work(task, start, until, log)
        status, size, heard, hung = None, 0, time.monotonic(), False
        while status is None:
            done, code = os.waitpid(child, os.WNOHANG)
            status = code if done else None
            now = log.stat().st_size
            if now != size:
                size, heard = now, time.monotonic()
            if status is None and time.monotonic() - heard > SILENCE:
                hung = True
                os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
            time.sleep(0.02)
        seed, finished = start - 1, False
        for line in log.read_text().splitlines():
            seed, what, where = json.loads(line)
            if what == "end":
                finished = True
                break
            if what != "begin":
                counts[what] += 1
                examples.setdefault(what, f"seed {seed}\n{where}")
        if not finished:
            end = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
            what = "HANG" if hung else f"CRASH: {end}"
            counts[what] += 1
            examples[what] = f"seed {seed}"
        return seed + 1, counts, examples


def _work(task: Callable[[int], list[Outcome]], start: int, until: float, log: Path) -> None:
    faulthandler.disable()  # a crash is told by the parent
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with log.open("a", buffering=1) as f:
        seed = start
        while time.monotonic() < until:
            f.write(json.dumps([seed, "begin", ""]) + "\n")
            f.writelines(json.dumps([seed, *said]) + "\n" for said in task(seed))
            seed += 1
        f.write(json.dumps([seed, "end", ""]) + "\n")
    os._exit(0)


def bad(counts: Counter[str]) -> dict[str, int]:
    """The outcomes that are not allowed."""
    return {k: v for k, v in counts.items() if k.startswith(("BUG", "CRASH", "HANG"))}
