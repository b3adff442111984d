"""How the command line begins and ends: help, version, exit codes, nothing heavy before it is needed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from cli_cases import trifold_, words

import trifold

COMMANDS = ("check", "fit", "latent", "classify", "predict", "map", "evaluate", "curvature", "path", "show", "cite", "demo")
MAIN = "import sys; from trifold.cli import main; sys.argv[0] = 'trifold'; main()"


def test_help_takes_under_a_second_and_a_half():
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", MAIN, "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
        if seconds[-1] < 1.5:
            break
    assert min(seconds) < 1.5


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]):
    code = f"""
import sys
from trifold.cli import app
try:
    app({arguments!r})
except SystemExit:
    pass
heavy = [m for m in ("torch", "numpy", "pandas", "scipy", "anndata", "scanpy", "sklearn", "matplotlib") if m in sys.modules]
sys.exit(f"imported: {{heavy}}" if heavy else 0)
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
