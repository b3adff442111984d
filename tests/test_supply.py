"""What is installed: every import is declared and the other way round; CI's lock holds every tested version with its hashes."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_IMPORT = {"scib_metrics": "scib-metrics", "sklearn": "scikit-learn", "lightning_fabric": "lightning-fabric"}
# Imported by another package when it is there: fsspec's readers of addresses. The baseline is run by benchmarks/.
INDIRECT = {"aiohttp", "s3fs", "harmonypy"}
LOCKS = ["requirements.lock", "torch-cpu.lock", "torch-cuda.lock", "tools.lock"]


def declared(*extras: str) -> dict[str, Requirement]:
    """The requirements of the project and of the extras, by name; those on trifold's own extras are left out."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in found if r.name != "trifold"}


def imports(tree: ast.AST) -> set[str]:
    """Top names of the packages that a file imports or asks for by name, relative imports left out."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "find_spec"):
            found |= {given.value for given in node.args[:1] if isinstance(given, ast.Constant)}
    return {name.split(".")[0] for name in found}


def packages() -> set[str]:
    """Names, as pip knows them, of what the sources of trifold import beyond Python itself."""
    found = set().union(*(imports(ast.parse(file.read_text())) for file in (ROOT / "src" / "trifold").rglob("*.py")))
    return {canonicalize_name(OF_IMPORT.get(name, name)) for name in found - set(sys.stdlib_module_names) - {"trifold"}}


def locked(name: str) -> dict[str, tuple[set[str], int]]:
    """The versions and the number of hashes of each package of a lock file of ci/."""
    found: dict[str, tuple[set[str], int]] = {}
    for line in (ROOT / "ci" / name).read_text().replace("\\\n", "").splitlines():
        if line.startswith("#"):
            continue
        requirement, *hashes = line.split("--hash=")
        parsed = Requirement(requirement.strip())
        version = re.fullmatch(r"==([^,]+)", str(parsed.specifier))
        assert version, line[:80]
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest.strip()) for digest in hashes), line[:80]
        key = canonicalize_name(parsed.name)
        versions, count = found.get(key, (set(), 0))
        found[key] = (versions | {version[1]}, count + len(hashes))
    return found


def test_every_import_is_a_declared_dependency():
    assert packages() <= set(declared("cloud", "cuda", "integration", "sweep"))


def test_every_declared_dependency_is_imported():
    assert set(declared("cloud", "cuda", "integration", "sweep")) - packages() == INDIRECT


def test_an_undeclared_import_would_be_seen():
    source = (
        "def f():\n    import requests.adapters\n    from yaml import load\n    from .own import x\n    return find_spec('zarrs.codec')\n"
    )
    assert imports(ast.parse(source)) == {"requests", "yaml", "zarrs"}


def test_every_dependency_has_a_lower_bound():
    for requirement in declared(*PROJECT["optional-dependencies"]).values():
        assert any(part.operator in (">=", "==") for part in requirement.specifier), str(requirement)


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_one_version_and_a_hash(name):
    for package, (versions, hashes) in locked(name).items():
        assert len({version.split("+")[0] for version in versions}) == 1, package
        assert hashes > 0, package


@pytest.mark.parametrize("torch", ["torch-cpu.lock", "torch-cuda.lock"])
def test_the_lock_holds_the_tested_versions_and_no_others(torch):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    of_lock = locked("requirements.lock") | {k: v for k, v in locked(torch).items() if k == "torch"}
    wanted = {canonicalize_name(name): version for name, version in tested.items()}
    assert {name: versions.pop().split("+")[0] for name, (versions, _) in of_lock.items()} == wanted


def test_the_lock_fits_what_is_declared():
    of_lock = locked("requirements.lock") | locked("torch-cuda.lock")
    for name, requirement in declared("cuda", "dev", "sweep", "test").items():
        assert requirement.specifier.contains(next(iter(of_lock[name][0]))), f"{requirement}: {of_lock[name][0]}"
    assert {"hatchling", "editables"} <= set(of_lock)  # without them pip would fetch what builds trifold, with no hash


def test_no_line_of_a_lock_names_another_place_to_fetch_from():
    for name in LOCKS:
        text = (ROOT / "ci" / name).read_text()
        assert "://" not in text, name
        assert not re.search(r"^\s*-(?!-hash=)", text, re.MULTILINE), name


def test_ci_installs_by_hash_and_only_wheels():
    makefile, script = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^make test LOCK=\"ci/requirements.lock \$torch\"$", script, re.MULTILINE)
    for line in makefile.splitlines():
        if "--requirement" in line and "install" in line:
            assert "--require-hashes --no-deps --only-binary :all:" in line
