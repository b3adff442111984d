"""Presets: functions that compose a ``Model``, one paper each."""

from trifold.presets.trvae import trvae

__all__ = ["trvae"]
