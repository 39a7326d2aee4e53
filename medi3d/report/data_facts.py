"""What a data set holds, from the fingerprint of its prepared store: rows and tables for pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def set_facts(fingerprint: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is known of a data set as a whole; what it lacks is left out."""
    orientations = fingerprint["native_orientations"].items()
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(orientations, key=lambda item: -item[1]))
    classes = ", ".join(f"{name} ({count})" for name, count in fingerprint["class_counts"].items())
    rows = [
        ("cases", f"{fingerprint['cases']}, of {fingerprint['groups']} patients"),
        ("native spacing (D, H, W), mm", _triples(fingerprint["native_spacing_mm"], 2)),
        ("native shape (D, H, W)", _triples(fingerprint["native_shape"], 0)),
        ("field of view (D, H, W), mm", _triples(fingerprint["field_of_view_mm"], 0)),
        ("native orientation", listed),
        ("prepared shape (D, H, W)", _triples(fingerprint["prepared_shape"], 0)),
        ("classes", classes),
    ]
    return [row for row in rows if row[1]]


def channel_table(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return medians over the set of each channel's intensities."""
    percentiles = fingerprint["intensity_percentiles"]
    rows = []
    for name, values in fingerprint["channels"].items():
        medians = [*values["percentiles"]["median"], values["mean"]["median"], values["std"]["median"]]
        rows.append(make_row(name, [f"{value:.4g}" for value in medians]))
    heads = [*(f"{percentile:g} %" for percentile in percentiles), "mean", "standard deviation"]
    return make_table("channel", heads, rows)


def label_table(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return how often each label is there and how large it is; rows in the order of the labels' values."""
    rows = []
    for name, values in fingerprint["labels"].items():
        volumes = values["volume_ml"]
        numbers = [f"{volumes[key]:.3g}" if volumes else "–" for key in ("median", "min", "max")]
        rows.append(make_row(name, [str(values["cases"]), *numbers]))
    return make_table("label", ["cases", "median ml", "smallest", "largest"], rows)


def _triples(spread: Mapping[str, Any], digits: int) -> str:
    """Say the median and, where they differ, the extremes of a triple."""
    texts = {
        key: " × ".join(f"{value:.{digits}f}" for value in spread.get(key, [])) for key in ("median", "min", "max")
    }
    same = texts["min"] == texts["max"]
    return texts["median"] if same else f"{texts['median']} ({texts['min']} to {texts['max']})"


def make_row(name: str, texts: list[str]) -> dict[str, Any]:
    """Return a row of a table as ``parts.matrix`` of the templates shows it."""
    return {"name": name, "cells": [{"value": text, "low": "", "high": ""} for text in texts]}


def make_table(corner: str, heads: list[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a table as ``parts.matrix`` of the templates shows it."""
    return {"corner": corner, "heads": [{"title": head, "note": ""} for head in heads], "rows": rows}
