"""Writes the lock files: every package that CI installs, with its version and the SHA-256 of each of its published files.

`make lock` runs it. The versions are those of `constraints.txt`; uv asks the package index for the hashes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "3.11"  # the oldest; the lock holds for every later one too, by markers
HEAD = "# Written by `make lock`; see ci/README.md.\n"
CUDA = ("torch", "cuda-", "nvidia-")  # torch, whose builds are chosen by machine, and what its CUDA build alone needs


def resolved(*inputs: str) -> dict[str, str]:
    """The requirement with its hashes, as lines of a requirements file, of every package that the inputs need.

    Args:
        inputs: Arguments of `uv pip compile`: files of requirements and options.

    Raises:
        subprocess.CalledProcessError: The versions do not fit together, or the package index cannot be reached.
    """
    options = ["--universal", "--python-version", PYTHON, "--only-binary", ":all:", "--generate-hashes", "--no-header", "--no-annotate"]
    done = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "--quiet", *options, *inputs],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    blocks = re.findall(r"^(\S+?)==(.*(?:\n    .*)*)", done.stdout, re.MULTILINE)
    names = [name for name, _ in blocks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SystemExit(f"One version for all platforms is needed; found several of {', '.join(twice)}. Pin it in constraints.txt.")
    return {name: f"{name}=={rest}\n" for name, rest in blocks}


def cpu_torch(torch: str) -> str:
    """The lines of torch that ask for its CPU build: on Linux a local version, published apart; elsewhere the only build there is.

    Args:
        torch: Lines of a requirements file, as `resolved` gives them.

    Raises:
        SystemExit: `torch_cpu.sha256` lists builds of another version.
    """
    version, hashes = re.fullmatch(r"torch==(\S+)([^;]*)", torch).groups()
    listed = [line.split() for line in (ROOT / "ci" / "torch_cpu.sha256").read_text().splitlines()]
    other = [name for _, name in listed if not name.startswith(f"torch-{version}+cpu-")]
    if other:
        raise SystemExit(
            f"ci/torch_cpu.sha256 must list the CPU builds of torch {version}; found {other[0]}. Take them from PyTorch's CPU index."
        )
    linux = "".join(f" \\\n    --hash=sha256:{digest}" for digest, _ in listed)
    return f"torch=={version}+cpu ; sys_platform == 'linux'{linux}\ntorch=={version} ; sys_platform != 'linux'{hashes}"


def write(name: str, blocks: list[str]) -> None:
    """Writes one lock file, unless it says the same already: make looks at its time."""
    file, text = ROOT / "ci" / name, HEAD + "".join(blocks)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def main() -> None:
    """Writes `requirements.lock`, `torch-cpu.lock`, `torch-cuda.lock` and `tools.lock`."""
    packages = resolved("pyproject.toml", "ci/build.in", "--extra", "dev", "--constraint", "constraints.txt")
    write("torch-cpu.lock", [cpu_torch(packages["torch"])])
    write("torch-cuda.lock", [block for name, block in packages.items() if name.startswith(CUDA)])
    write("requirements.lock", [block for name, block in packages.items() if not name.startswith(CUDA)])
    write("tools.lock", list(resolved("ci/tools.in").values()))


if __name__ == "__main__":
    main()
