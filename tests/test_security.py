"""What SECURITY.md promises of a whole run: no connection, nothing left outside its folder, no telemetry, no pickle in the sources."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src" / "trifold").rglob("*.py"))
OWN = "together.py"  # hands its own arguments to processes of its own, on this machine

PROGRAM = """
import os, sys
written, asked = [], []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def hook(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        asked.append((event, str(args)))
    elif event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
        mode, flags = args[1], args[2]
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (mode is None and flags & WRITES):
            written.append(os.path.abspath(os.fsdecode(args[0])))
    elif event in ("os.mkdir", "os.rename", "os.symlink", "os.link"):
        written.append(os.path.abspath(os.fsdecode(args[0] if event == "os.mkdir" else args[1])))

sys.addaudithook(hook)
OUT = os.path.abspath(sys.argv[1])
CONNECT = len(sys.argv) > 2
import trifold, trifold.cli.app
data = trifold.simulate(60, 20, types=2, conditions=2, depth=1.0, seed=0).adata
model = trifold.trvae(trifold.Schema.of(data, condition="condition", empty="keep"), latent=2, hidden=(4,))
model.fit(data, epochs=1, batch=16, device="cpu", progress=False, out=os.path.join(OUT, "run"))
model = trifold.load(os.path.join(OUT, "run"))
model.latent(data)
model.predict(data, {"condition": model.schema.column("condition").values[0]})
if CONNECT:
    import socket
    try:
        socket.create_connection(("127.0.0.1", 9), timeout=0.2)
    except OSError:
        pass
    open(os.path.join(os.getcwd(), "stray"), "w").close()
import tempfile
allowed = (OUT, "/dev/", "/proc/", tempfile.gettempdir())  # and caches of compiled code, Python's and PyTorch's
outside = sorted({p for p in written if not p.startswith(allowed) and "__pycache__" not in p and "torchinductor" not in p})
print("CONNECTIONS", asked)
print("OUTSIDE", outside)
"""


def told(tmp_path: Path, *more: str) -> tuple[str, list[Path]]:
    """What a run in a process with an empty home says of itself, and the files that it left outside its folder."""
    places = {k: tmp_path / k for k in ("home", "cwd", "temporary", "out")}
    for place in places.values():
        place.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "PYTEST", "NUMBA_", "MPL"))}
    env |= {"HOME": str(places["home"]), "TMPDIR": str(places["temporary"]), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(places["out"]), *more]
    done = subprocess.run(command, cwd=places["cwd"], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [p for k in ("home", "cwd", "temporary") for p in places[k].rglob("*") if p.is_file()]


def test_importing_training_saving_and_predicting_opens_no_connection_and_writes_only_to_its_folder(tmp_path):
    said, left = told(tmp_path)
    assert "CONNECTIONS []" in said
    assert "OUTSIDE []" in said, said
    assert left == []


def test_a_connection_and_a_stray_file_would_be_seen(tmp_path):
    said, left = told(tmp_path, "connect")
    assert "('socket.connect'" in said
    assert "stray" in said.split("OUTSIDE")[1]
    assert [p.name for p in left] == ["stray"]


def test_no_source_file_reads_pickles_or_runs_text():
    calls = {"eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "joblib.load", "marshal.loads", "os.system"}
    imported = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    for file in [f for f in SOURCES if f.name != OWN]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in calls, f"{file}:{node.lineno} {ast.unparse(node)}"
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get("allow_pickle", "False") == "False", f"{file}:{node.lineno}"
                assert given.get("shell", "False") == "False", f"{file}:{node.lineno}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {a.name for a in node.names} if isinstance(node, ast.Import) else {node.module or ""}
                assert not names & imported, f"{file}:{node.lineno}"


def test_no_source_file_imports_a_client_of_the_network_but_the_reader_of_addresses():
    names = r"requests|urllib\.request|http\.client|httpx|aiohttp|socket|ftplib|smtplib|fsspec|boto\w*"
    clients = re.compile(rf"^\s*(?:import|from) (?:{names})\b", re.M)
    found = {file.name for file in SOURCES if clients.search(file.read_text())}
    assert found <= {"places.py", OWN}, found


@pytest.mark.parametrize("name", ["SECURITY.md"])
def test_what_is_promised_is_written_down(name):
    text = (ROOT / name).read_text()
    for word in ("pickle", "SHA-256", "trust=", "advisory", "telemetry"):
        assert word in text
