"""Runs the Triton kernels: imported where a GPU is, else as a script, since the interpreter is chosen when Triton is imported.

``python triton_worker.py cases.pt answers.pt`` answers the saved cases; ``python triton_worker.py compile 90`` compiles every form of the
kernels for that compute capability, which takes no GPU.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
import triton
import triton.language as tl

from trifold.dist import cuda
from trifold.records import Rows


@triton.jit
def _entries(x, log_mu, log_theta, log_p, digammas, n, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    inside = i < n
    k, m, t = (tl.load(p + i, mask=inside, other=1.0) for p in (x, log_mu, log_theta))
    tl.store(log_p + i, cuda._log_pmf(k, m, t), mask=inside)
    tl.store(digammas + i, cuda._digamma_difference(cuda._exp(t), k), mask=inside)


def entries(x, log_mu, log_theta):
    """Log-probability and digamma difference of each entry for itself."""
    out = torch.empty_like(x), torch.empty_like(x)
    _entries[(1,)](x, log_mu, log_theta, *out, len(x), SIZE=triton.next_power_of_2(len(x)))
    return out


def answer(case: dict[str, Any], device: str):
    """What the kernels give for a case, on the CPU."""
    tensors = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in case.items() if k not in ("csr", "blocks")}
    if "scores" not in case:
        return tuple(t.cpu() for t in entries(**tensors))
    kept = cuda.GENES, cuda.NONZEROS
    cuda.GENES, cuda.NONZEROS = case.get("blocks", kept)
    shape = tuple(case["scores"].shape)
    x = tensors.pop("x", None)
    rows = Rows.of_dense(x) if x is not None else Rows.of_csr(*(t.to(device) for t in case["csr"]), shape)
    got = cuda.split_cuda(**tensors, rows=rows)
    cuda.GENES, cuda.NONZEROS = kept
    return tuple(None if t is None else t.cpu() for t in got)


def compile_all(capability: int) -> None:
    """Compile each form of each kernel to machine code."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for kernel, sparse, inflated, grads in itertools.product((cuda._nonzeros, cuda._genes), *[(True, False)] * 3):
        fixed = {"GENES": 1024 if sparse else 256, "SPARSE": sparse, "INFLATED": inflated, "GRADS": grads, "NONZEROS": 256}
        fixed = {k: v for k, v in fixed.items() if k in kernel.arg_names}
        kinds = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(("g", "by_cell"), "i32") | dict.fromkeys(fixed, "constexpr")
        if sparse:
            kinds |= {k: v for k, v in {"crow": "*i64", "col": "*i64", "mark": "*u8", "x": "*u8"}.items() if k in kinds}
        source = ASTSource(fn=kernel, signature=kinds, constexprs=fixed)
        done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True})
        sys.stdout.write(f"{kernel.__name__} {len(done.asm['cubin'])}\n")


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        compile_all(int(sys.argv[2]))
    else:
        torch.save([answer(case, "cpu") for case in torch.load(sys.argv[1])], sys.argv[2])
