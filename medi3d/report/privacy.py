"""What a page must not tell: paths and file names, which may say who a patient is."""

from __future__ import annotations

import re

_PATHS = re.compile(
    r"""(?x) (?<![^\s'"(])                                        # where a word begins:
    (?: (?: [/~] | \.{1,2}[/\\] | [A-Za-z]:\\ ) [^\s'":,;)]*     # it starts like a path,
    | [^\s'":,;)]* [/\\] [^\s'":,;)]* [/\\] [^\s'":,;)]*          # or has two slashes,
    | [^\s'":,;)]* \.(?:nii|gz|nrrd|nhdr|mha|mhd|raw|hdr|img|dcm|csv|json) (?![^\s'":,;)]) )  # or ends like a file
    """
)


def without_paths(message: str) -> str:
    """Leave out where on the disk files lie, and how they are called: that may tell who the patient is.

    Example:
        >>> without_paths("/data/Jane Doe/ct.nii.gz: the file is empty")
        'the file is empty'
        >>> without_paths("channel T1: /data/a.nii and b.nii disagree")
        'channel T1: … and … disagree'
    """
    head, separator, tail = message.partition(": ")
    if separator and ("/" in head or "\\" in head or _PATHS.search(head)):
        message = tail
    return _PATHS.sub("…", message)
