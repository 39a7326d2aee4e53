"""From raw files to prepared arrays: orient, resample, crop, normalise, record, fingerprint.

Imports the ground floor and :mod:`medi3d.io`. Every step maps one grid to another, so the record of a case is its
native and its prepared grid.
"""

from medi3d.io.record import Record
from medi3d.preprocess.cases.layouts import describe_expected, group_channels
from medi3d.preprocess.cases.raw_case import CaseProblem, RawCase
from medi3d.preprocess.cases.reading import read_image
from medi3d.preprocess.cases.sources import find_raw_cases, list_raw_cases
from medi3d.preprocess.dataset import Summary, prepare_dataset
from medi3d.preprocess.orient import reorient
from medi3d.preprocess.pipeline import prepare_case, prepare_image
from medi3d.preprocess.resampling.resample import isotropic_grid, resample_to

__all__ = [
    "CaseProblem",
    "RawCase",
    "Record",
    "Summary",
    "describe_expected",
    "find_raw_cases",
    "group_channels",
    "isotropic_grid",
    "list_raw_cases",
    "prepare_case",
    "prepare_dataset",
    "prepare_image",
    "read_image",
    "reorient",
    "resample_to",
]
