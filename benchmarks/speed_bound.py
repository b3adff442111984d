"""The bound of speed.py: nothing but a network's large matrix multiplications, forward and backward. Started by speed.py, not by hand.

For genes g, hidden width h, a minibatch of n cells: x W (n × g × h) and its gradient in W in the first layer; h V (n × h × g), its
gradient in V and its gradient in h for each output of the decoder, one for a negative binomial and two with zero inflation. Dense, into
memory that is there; the small layers (h × 2 d, d × h), biases and everything that is done with the results are left out. ``decoder`` is
the time of the decoder's alone, which is what remains when the first layer is sparse.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from speed_workers import serve


class Side:
    """The matrices."""

    def setup(self, cells: int, genes: int, likelihood: str, batch: int, hidden: int) -> dict[str, Any]:
        """One minibatch's worth of random numbers."""
        torch.manual_seed(0)
        self.outputs = 2 if likelihood == "zinb" else 1
        self.steps, self.batch = -(-cells // batch), batch
        self.x, self.features = torch.rand(batch, genes), torch.rand(batch, hidden)
        self.first = torch.rand(genes, hidden)
        self.last = [torch.rand(hidden, genes) for _ in range(self.outputs)]
        self.out, self.narrow = torch.empty(batch, genes), torch.empty(batch, hidden)
        self.wide, self.tall = torch.empty(hidden, genes), torch.empty(genes, hidden)
        return {"torch": torch.__version__}

    def epochs(self, n: int) -> dict[str, Any]:
        """Seconds of n epochs of all multiplications, and of the decoder's alone; the latter are timed apart, right after."""
        whole, decoder = self._timed(n, first=True), self._timed(n, first=False)
        return {
            "wall": whole[0],
            "cpu": whole[1],
            "decoder wall": decoder[0],
            "decoder cpu": decoder[1],
            "cells": n * self.steps * self.batch,
        }

    def _timed(self, n: int, *, first: bool) -> tuple[float, float]:
        for _ in range(3):
            self._step(first)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(n * self.steps):
            self._step(first)
        return time.perf_counter() - wall, time.process_time() - cpu

    def _step(self, first: bool) -> None:
        if first:
            torch.mm(self.x, self.first, out=self.narrow)
            torch.mm(self.x.T, self.features, out=self.tall)
        for weight in self.last:
            torch.mm(self.features, weight, out=self.out)
            torch.mm(self.features.T, self.out, out=self.wide)
            torch.mm(self.out, weight.T, out=self.narrow)


def main() -> None:
    """Answer until stdin ends."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(ask.parse_args().threads)
    side = Side()
    with torch.no_grad():
        serve({name: getattr(side, name) for name in ("setup", "epochs")})


if __name__ == "__main__":
    main()
