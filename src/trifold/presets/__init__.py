"""Presets: functions that compose a ``Model``, one paper each."""

from trifold.presets.gamma_vae import gamma_vae
from trifold.presets.invae import invae
from trifold.presets.trvae import trvae

__all__ = ["gamma_vae", "invae", "trvae"]
