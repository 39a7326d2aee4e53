"""Standardised uptake values by body weight, from a PET series' own header.

SUVbw = activity concentration (Bq/ml) × weight (g) / injected dose (Bq), the dose decayed to the time to which the
image was corrected. The rule is QIBA's vendor-neutral one for DICOM PET (FDG-PET/CT profile, appendix G), over the
elements of PS3.3 C.8.9.1 (PET Series) and C.8.9.2 (PET Isotope). Whatever it needs and does not find is an error that
names the element, never its value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from medi3d.errors import InputError
from medi3d.io.dicom.frames import Frame
from medi3d.io.dicom.tags import Tags

_GE_CREATOR, _GE_SCAN = (0x00090010, b"GEMS_PETD_01"), 0x0009100D
_PHILIPS_CREATOR, _PHILIPS_SUV, _PHILIPS_ACTIVITY = (0x70530010, b"Philips PET Private Group"), 0x70531000, 0x70531009
_DECIMAL = re.compile(rb" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? *")
_STAMP = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)?(\d\d)?(\.\d{1,6})?([+-]\d{4})?")
_PET = "1.2.840.10008.5.1.4.1.1.128"
_LONGEST = timedelta(days=2)


def to_suv(frames: Sequence[Frame], where: str) -> list[Frame]:
    """Return the slices with slopes that give SUV by body weight (g/ml).

    Args:
        frames: the slices of a volume as they are stored.
        where: how messages name the series.

    Raises:
        InputError: no classic PET series, other units, a missing element, an image that is not corrected for decay.
    """
    tags = [frame.file.tags for frame in frames]
    if any(slice_tags.text("SOPClassUID") != _PET for slice_tags in tags):
        raise InputError(f"{where}: quantity suv needs a PET series of one file a slice; this is none")
    units = {slice_tags.text("Units") for slice_tags in tags}
    if len(units) != 1 or (unit := units.pop()) not in _FACTORS:
        raise InputError(f"{where}: SUV needs Units {', '.join(_FACTORS)}, the same in all slices")
    factors = _FACTORS[unit](tags, where)
    return [frame.scaled(factor) for frame, factor in zip(frames, factors, strict=True)]


def _factors_of_grams(tags: Sequence[Tags], where: str) -> list[float]:
    """GML: the stored values are SUV already; by body weight, if the type is absent or says so."""
    if any(slice_tags.text("SUVType") not in ("", "BW") for slice_tags in tags):
        raise InputError(f"{where}: SUVType is not BW; only SUV by body weight is read")
    return [1.0] * len(tags)


def _factors_of_counts(tags: Sequence[Tags], where: str) -> list[float]:
    """CNTS: Philips gives the factor to SUV in (7053,1000), or to Bq/ml in (7053,1009)."""
    direct = [_private(slice_tags, _PHILIPS_CREATOR, _PHILIPS_SUV) for slice_tags in tags]
    if all(direct):
        return [factor for factor in direct if factor]
    activity = [_private(slice_tags, _PHILIPS_CREATOR, _PHILIPS_ACTIVITY) for slice_tags in tags]
    if not all(activity):
        raise InputError(
            f"{where}: Units CNTS without Philips' factor (7053,1000) or (7053,1009): counts give no SUV; was the "
            "private group removed?"
        )
    weights = _factors_of_becquerels(tags, where)
    return [factor * weight for factor, weight in zip(activity, weights, strict=True) if factor]


def _factors_of_becquerels(tags: Sequence[Tags], where: str) -> list[float]:
    """BQML: weight in grams over the dose that is left at the time of correction."""
    for slice_tags in tags:
        if not {"ATTN", "DECY"} <= set(slice_tags.texts("CorrectedImage")):
            raise InputError(f"{where}: CorrectedImage must hold ATTN and DECY for SUV")
    corrections = {slice_tags.text("DecayCorrection") for slice_tags in tags}
    if corrections not in ({"START"}, {"ADMIN"}):
        raise InputError(
            f"{where}: DecayCorrection must be START or ADMIN in all slices; without it activities of different times "
            "cannot be compared"
        )
    starts = _scan_starts(tags) if corrections == {"START"} else [None] * len(tags)
    return [_positive(slice_tags, "PatientWeight") * 1000 / _dose_left(slice_tags, start)
            for slice_tags, start in zip(tags, starts, strict=True)]  # fmt: skip


_FACTORS: dict[str, Callable[[Sequence[Tags], str], list[float]]] = {
    "BQML": _factors_of_becquerels,
    "CNTS": _factors_of_counts,
    "GML": _factors_of_grams,
}


def _dose_left(tags: Tags, start: datetime | None) -> float:
    """Return the injected dose in Bq, decayed to the start of the scan where the image is corrected to that."""
    isotopes = tags.items("RadiopharmaceuticalInformationSequence")
    if len(isotopes) != 1:
        raise InputError(f"{tags.where}: RadiopharmaceuticalInformationSequence must hold one item for SUV")
    dose = _positive(isotopes[0], "RadionuclideTotalDose")
    if start is None:
        return dose
    half_life = _positive(isotopes[0], "RadionuclideHalfLife")
    elapsed = start - _injection(isotopes[0], start)
    if not timedelta(0) <= elapsed <= _LONGEST:
        raise InputError(f"{tags.where}: the injection must be at most two days before the scan; check the clocks")
    return dose * 2 ** -(elapsed.total_seconds() / half_life)


def _injection(isotope: Tags, start: datetime) -> datetime:
    if isotope.text("RadiopharmaceuticalStartDateTime"):
        return _moment(isotope, "RadiopharmaceuticalStartDateTime")
    day = start.strftime("%Y%m%d")
    time = _moment(isotope, "RadiopharmaceuticalStartTime", day=day)
    return time if time <= start else time - timedelta(days=1)  # injected before midnight


def _scan_starts(tags: Sequence[Tags]) -> list[datetime]:
    """Return, for each slice, the time to which Decay Correction START refers.

    It is Series Date and Time; where that is later than an acquisition (a series made afterwards), GE's private scan
    time; else it is reckoned back from Frame Reference Time.
    """
    acquired = [_acquisition(slice_tags) for slice_tags in tags]
    series = [_moment(slice_tags, "SeriesTime", day=slice_tags.text("SeriesDate")) for slice_tags in tags]
    if max(series) <= min(acquired):
        return series
    scanned = [_private_moment(slice_tags) for slice_tags in tags]
    if all(scanned):
        return [moment for moment in scanned if moment]
    return [_start_by_frame(slice_tags, moment) for slice_tags, moment in zip(tags, acquired, strict=True)]


def _start_by_frame(tags: Tags, acquired: datetime) -> datetime:
    """Reckon the start back from a frame: Frame Reference Time is when its count rate was the average one."""
    isotope = tags.item("RadiopharmaceuticalInformationSequence") or tags
    rate = math.log(2) / _positive(isotope, "RadionuclideHalfLife")
    decay = rate * _positive(tags, "ActualFrameDuration") / 1000
    average = math.log(decay / -math.expm1(-decay)) / rate
    return acquired - timedelta(seconds=_positive(tags, "FrameReferenceTime") / 1000 - average)


def _acquisition(tags: Tags) -> datetime:
    if tags.text("AcquisitionTime"):
        return _moment(tags, "AcquisitionTime", day=tags.text("AcquisitionDate"))
    return _moment(tags, "AcquisitionDateTime")


def _positive(tags: Tags, keyword: str) -> float:
    number = tags.number(keyword)
    if number is None:
        raise InputError(f"{tags.where}: {keyword} is missing, which SUV needs")
    if number <= 0:
        raise InputError(f"{tags.where}: {keyword} must be above 0 for SUV")
    return number


def _moment(tags: Tags, keyword: str, *, day: str = "") -> datetime:
    """Parse a DT element, or a TM element of a ``day`` (PS3.5 section 6.2); local time, as the scanner wrote it."""
    text = tags.text(keyword)
    if not text or (not day and not keyword.endswith("DateTime")):
        raise InputError(f"{tags.where}: {keyword}{' or its date' * bool(text)} is missing, which SUV needs")
    moment = _parse_stamp(day + text)
    if moment is None:
        raise tags.unreadable(keyword)
    return moment


def _parse_stamp(text: str) -> datetime | None:
    found = _STAMP.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    try:
        return datetime(year, month, day, hour, minute, second) + timedelta(seconds=float(found[7] or 0))
    except ValueError:
        return None


def _private(tags: Tags, creator: tuple[int, bytes], tag: int) -> float | None:
    value = _private_bytes(tags, creator, tag)
    return float(value) if value and _DECIMAL.fullmatch(value) and float(value) > 0 else None


def _private_moment(tags: Tags) -> datetime | None:
    value = _private_bytes(tags, _GE_CREATOR, _GE_SCAN)
    return _parse_stamp(value.decode("ascii", "replace")) if value else None


def _private_bytes(tags: Tags, creator: tuple[int, bytes], tag: int) -> bytes | None:
    owner = tags.bytes_of(creator[0])
    return tags.bytes_of(tag) if owner == creator[1] else None
