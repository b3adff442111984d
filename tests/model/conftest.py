"""Models with blocks that the tests of this folder share. Do not train them further."""

from __future__ import annotations

import block_cases
import pytest


@pytest.fixture(scope="session")
def cells():
    return block_cases.study()


@pytest.fixture(scope="session")
def blocks(cells):
    return block_cases.fitted(cells)


@pytest.fixture(scope="session")
def told(cells):
    """The paper's own choices: the encoder sees biology and technique."""
    return block_cases.fitted(cells, epochs=4, published=True)
