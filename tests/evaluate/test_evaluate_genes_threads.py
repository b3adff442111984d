"""Choosing genes leaves the number of threads as the user set it."""

from __future__ import annotations

import numpy as np
import torch

from trifold.evaluate import variable_genes


def test_the_choice_of_variable_genes_leaves_torch_with_the_threads_that_it_had():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        variable_genes(np.random.default_rng(0).poisson(1.0, (200, 300)).astype(np.float32), 50)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
