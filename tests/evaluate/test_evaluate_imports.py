import subprocess
import sys


def test_importing_evaluate_takes_neither_torch_nor_scanpy():
    code = "import sys, trifold.evaluate; print([m for m in ('torch', 'scanpy', 'anndata', 'trifold.model') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
