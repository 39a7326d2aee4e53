"""What pretrained encoders see of lung nodules without any training: AUC of a linear classifier on frozen features.

    python benchmarks/frozen_encoders.py --prepared PREPARED --table nodules.csv [--encoders astra …]

Each labelled case passes once through an encoder; its features are the averages of every stage's map, as `medi3d train`
takes them. Five folds by patient, those of `medi3d train`; in each a logistic regression of the standardised features,
whose penalty an inner cross-validation by patient chooses. AUC out of fold, intervals by bootstrap over patients, and
the paired difference to the nodule's diameter. The extent of the file's crop alone is a row
too. An encoder is NAME or NAME:INIT (``tf_efficientnet_lite0:random``).

Astra gets its own window, -1000 to 200 HU; the others that of the store.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rows import read_rows, write_rows
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medi3d import create_encoder
from medi3d.data.splits import split_cases
from medi3d.evaluate import bootstrap_difference, bootstrap_interval
from medi3d.evaluate.probabilities import auc_of
from medi3d.io.prepared import PreparedCase, PreparedStore
from medi3d.models.classifier import pool_features

RESULTS = Path(__file__).parent / "frozen_encoders"
BACKBONE = "tf_efficientnet_lite0"
ENCODERS = (
    *(f"{BACKBONE}:{init}" for init in ("random", "imagenet-inflated", "imagenet-center", "imagenet-overshoot")),
    "astra",
)
WINDOWS = {"astra": (-1000.0, 200.0)}
PENALTIES = np.logspace(-5, 1, 7)
FOLDS = 5


def read_features(
    encoder: str, store: PreparedStore, cases: list[PreparedCase], options: argparse.Namespace
) -> np.ndarray:
    """Return (cases, channels): averages of every stage's map, over the mirrored copies asked for."""
    name, _, init = encoder.partition(":")
    torch.manual_seed(options.seed)
    network = create_encoder(name, init=init or None, stem_stride=options.stem_stride).eval()
    low, high = store.task_values["preprocess"]["window_hu"]
    first, last = WINDOWS.get(name, (low, high))
    rows = []
    with torch.inference_mode():
        for case in cases:
            image = torch.as_tensor(np.asarray(case.image()[:], np.float32))[None]
            image = ((image * (high - low) + low - first) / (last - first)).clamp(0, 1)
            copies = [image.flip(axes) for axes in ((), (2,), (3,), (4,))[: 1 + 3 * options.mirror]]
            rows.append(torch.stack([pool_features(network(copy))[0] for copy in copies]).mean(0).numpy())
    return np.stack(rows)


def read_extents(cases: list[PreparedCase]) -> np.ndarray:
    """Return the logarithms of the files' extents in mm, (cases, 3): what padding to a cube lets a network see."""
    natives = (case.record.native for case in cases)
    return np.log([np.multiply(grid.shape, grid.spacing_mm) for grid in natives])


def score_out_of_fold(features: np.ndarray, cases: list[PreparedCase], seed: int) -> np.ndarray:
    """Return each case's log-odds from the regression of the fold that holds it out."""
    target = np.array([case.target for case in cases])
    patient = np.array([case.group for case in cases])
    place = {case.case_id: number for number, case in enumerate(cases)}
    scores = np.full(len(cases), np.nan)
    for fold in range(FOLDS):
        split = split_cases(cases, folds=FOLDS, fold=fold, seed=seed)
        train, held_out = ([place[name] for name in part] for part in (split.train, split.validation))
        inner = StratifiedGroupKFold(4).split(train, target[train], patient[train])
        regression = LogisticRegressionCV(
            Cs=PENALTIES, cv=list(inner), scoring="roc_auc", max_iter=2000, l1_ratios=(0,), use_legacy_attributes=False
        )
        model = make_pipeline(StandardScaler(), regression)
        scores[held_out] = model.fit(features[train], target[train]).decision_function(features[held_out])
    return scores


def compare(title: str, scores: np.ndarray, diameter: np.ndarray, cases: list[PreparedCase]) -> dict[str, object]:
    """Return a row: AUC and its difference to the diameter's, both with patient-clustered intervals."""
    target, patients = np.array([case.target for case in cases], float), [case.group for case in cases]
    by_scores, by_diameter = auc_of(target, scores), auc_of(target, diameter)
    auc = bootstrap_interval(by_scores, len(cases), groups=patients)
    more = bootstrap_difference(by_scores, by_diameter, len(cases), groups=patients)
    intervals = (("auc", auc), ("difference", more))
    values = {
        f"{name}{end}": f"{value:.4f}"
        for name, interval in intervals
        for end, value in (("", interval.value), ("_low", interval.low), ("_high", interval.high))
    }
    return {"features": title, "cases": len(cases), **values}


def measure(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield a row for each encoder, alone and with the diameter beside it."""
    store = PreparedStore(options.prepared)
    cases = [case for case in store.cases() if case.target is not None]
    with options.table.open(newline="", encoding="utf-8") as stream:
        table = {row["case_id"]: float(row["diameter_mm"]) for row in csv.DictReader(stream)}
    diameter = np.array([table[case.case_id] for case in cases])
    yield compare("diameter", diameter, diameter, cases)
    yield compare("extent of the crop", score_out_of_fold(read_extents(cases), cases, options.seed), diameter, cases)
    for encoder in options.encoders:
        features = read_features(encoder, store, cases, options)
        yield compare(encoder, score_out_of_fold(features, cases, options.seed), diameter, cases)
        both = np.column_stack([features, np.log(diameter)])
        yield compare(f"{encoder} + diameter", score_out_of_fold(both, cases, options.seed), diameter, cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, required=True, help="the store of lung_nodule")
    parser.add_argument("--table", type=Path, required=True, help="nodules.csv with diameters")
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, help="NAME or NAME:INIT")
    parser.add_argument("--stem-stride", type=int, choices=(1, 2), help="of the first convolution [the network's own]")
    parser.add_argument("--mirror", action="store_true", help="average the features of three mirrored copies too")
    parser.add_argument("--seed", type=int, default=0, help="of folds and random weights")
    parser.add_argument("--results", type=Path, default=RESULTS / "lung_nodule.csv")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    title = {"store": options.prepared.name, "stem_stride": options.stem_stride or "", "mirror": int(options.mirror)}
    rows: list[dict[str, object]] = [*read_rows(options.results)]
    for row in measure(options):
        rows.append(title | row)
        print(*rows[-1].values(), flush=True)
        write_rows(rows, options.results)


if __name__ == "__main__":
    main()
