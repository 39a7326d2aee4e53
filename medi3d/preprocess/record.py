"""The record of a case's preprocessing; it is stored with the case, so its home is :mod:`medi3d.io.record`."""

from medi3d.io.record import Record

__all__ = ["Record"]
