"""Reading and writing: files ↔ volumes, and the chunked prepared store.

The only room that knows nibabel, DICOM, gzip and blosc2, and the only one where (x, y, z) and LPS become (D, H, W)
and RAS. Imports the ground floor only.
"""

from medi3d.io.files import (
    case_name,
    image_files,
    read_header,
    read_label_map,
    read_volume,
    source_files,
    write_label_map,
    write_volume,
)
from medi3d.io.itk import from_sitk, to_sitk
from medi3d.io.nibabel_image import from_nibabel, to_nibabel
from medi3d.io.prepared import PreparedCase, PreparedStore, write_case
from medi3d.io.record import Record

__all__ = [
    "PreparedCase",
    "PreparedStore",
    "Record",
    "case_name",
    "from_nibabel",
    "from_sitk",
    "image_files",
    "read_header",
    "read_label_map",
    "read_volume",
    "source_files",
    "to_nibabel",
    "to_sitk",
    "write_case",
    "write_label_map",
    "write_volume",
]
