"""How the command line begins and ends: help, version, exit codes, nothing heavy before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_cases import trifold_, words

import trifold

COMMANDS = ("check", "fit", "latent", "classify", "predict", "map", "evaluate", "profile", "sweep", "convert", "curvature", "path", "show")
COMMANDS += ("verify", "migrate", "cite", "demo")
MAIN = "import sys; from trifold.cli import main; sys.argv[0] = 'trifold'; main()"


HEAVY = ("torch", "numpy", "pandas", "scipy", "anndata", "scanpy", "sklearn", "matplotlib", "numba", "h5py", "zarr")


AFTER = """
import atexit, os, time
def say():
    status = open("/proc/self/status").read() if os.path.exists("/proc/self/status") else "VmHWM: 0 kB"
    os.write(2, f"{time.process_time()} {status.split('VmHWM:')[1].split()[0]}".encode())
atexit.register(say)
"""


@pytest.mark.parametrize("code", ["import trifold", MAIN], ids=["import", "help"])
def test_import_and_help_take_little_time_and_under_100_mib(code: str):
    found = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", AFTER + code, "--help"], check=True, capture_output=True, text=True)
        seconds, kib = done.stderr.split()
        found.append(float(seconds))
        assert int(kib) < 100 * 2**10  # at most resident
    assert min(found) < 1.5  # CPU seconds; 0.04 and 0.26 measured


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]):
    code = f"""
import sys
from trifold.cli import app
try:
    app({arguments!r})
except SystemExit:
    pass
heavy = [m for m in {HEAVY!r} if m in sys.modules]
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_of_the_package_imports_nothing_heavy_until_a_name_is_used():
    code = f"""
import sys
import trifold
heavy = [m for m in {HEAVY!r} if m in sys.modules]
assert not heavy, heavy
assert "Model" in dir(trifold)
heavy = [m for m in {HEAVY!r} if m in sys.modules]
assert not heavy, heavy
trifold.TrifoldError
assert "torch" not in sys.modules
trifold.load
assert "torch" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_and_the_exit_codes():
    text = words(trifold_("--help").output)
    assert all(name in text for name in COMMANDS)
    assert "Exit codes: 0 fine; 1" in text


def test_version_is_that_of_the_package():
    assert trifold_("--version").output.strip() == f"trifold {trifold.__version__}"


def test_an_error_of_trifold_is_one_block_on_stderr_and_exit_code_1(data):
    command = [sys.executable, "-c", MAIN, "fit", str(data), "--condition", "conditoin", "--out", str(data.parent / "never")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("SchemaError: ")
    assert "'conditoin'" in done.stderr
    assert "Did you mean 'condition'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["fti"], ["fit"], ["fit", "absent.h5ad"], ["latent", "run"], ["check", "--colour", "red"]])
def test_a_command_line_that_cannot_be_read_is_exit_code_2(arguments: list[str]):
    assert trifold_(*arguments).exit_code == 2


def test_notices_go_to_stderr_and_tables_to_stdout(data):
    import anndata

    a = anndata.read_h5ad(data)
    a.obs["batch"] = a.obs["condition"].astype(str).str.upper().astype("category")
    path = data.parent / "other.h5ad"
    a.write_h5ad(path)
    result = trifold_("check", path, "--condition", "condition", "--spurious", "batch")
    assert result.exit_code == 0
    assert "Note: 'condition' (condition) is confounded with 'batch'" in result.stderr
    assert "confounded" not in result.stdout
    assert "2 categories: control, drug" in result.stdout
