"""trifold: flat, invariant and transferable representations of high-dimensional data.

The public names, nothing else. Each is imported when it is first used, so that ``import trifold`` takes no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
