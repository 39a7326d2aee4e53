"""What medi3d raises when a user's input cannot be used.

A message says what was expected, what came, in which file or case, and how to mend it. The command line prints it
as one line, without a traceback.
"""

from __future__ import annotations


class Medi3dError(Exception):
    """Base of every error that medi3d raises on purpose."""


class InputError(Medi3dError, ValueError):
    """A file, volume, label or table does not hold what it should."""


class ConfigError(Medi3dError, ValueError):
    """A configuration key, flag or name is unknown, of the wrong type or out of range."""


class InflationError(Medi3dError, TypeError):
    """A module of a 2D network has no exact 3D form here."""


class WeightsError(Medi3dError, RuntimeError):
    """Weights that were asked for cannot be had or do not fit."""


class MissingDependencyError(Medi3dError, ImportError):
    """An optional package is not installed; the message names the extra."""
