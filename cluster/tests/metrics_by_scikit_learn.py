"""Prints ten thousand random cases of predictions and labels as JSON, with what scikit-learn and SciPy say of them.

Among them are constant predictions, constant labels, ties, and cases of one example. A figure that is undefined is null.
"""

import json
import warnings

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error

CASES = 10_000
random = np.random.default_rng(1)


def classification():
    n, classes = random.integers(1, 61), random.integers(2, 5)
    labels = random.integers(0, classes, n)
    # From pure guessing to always right.
    predictions = np.where(random.random(n) < random.random(), labels, random.integers(0, classes, n))
    if random.random() < 0.15:
        predictions[:] = random.integers(0, classes)
    if random.random() < 0.1:
        labels[:] = random.integers(0, classes)
    return labels, predictions, {
        "accuracy": accuracy_score(labels, predictions),
        "f1": f1_score(labels == 1, predictions == 1, zero_division=0),
        "matthews": matthews_corrcoef(labels, predictions),
    }


def regression():
    n = random.integers(1, 61)
    labels = random.random(n) * 5
    predictions = labels * random.random() + random.normal(size=n) * random.random() * 3
    if random.random() < 0.5:
        labels, predictions = np.round(labels, 1), np.round(predictions, random.integers(0, 2))
    if random.random() < 0.1:
        predictions[:] = predictions[0]
    if random.random() < 0.1:
        labels[:] = labels[0]
    # bam keeps both in single precision; the figures are computed in double precision from there.
    labels, predictions = labels.astype(np.float32), predictions.astype(np.float32)
    wide = labels.astype(np.float64), predictions.astype(np.float64)
    defined = n > 1 and np.ptp(labels) > 0 and np.ptp(predictions) > 0
    return labels, predictions, {
        "mse": mean_squared_error(*wide),
        "pearson": pearsonr(*wide).statistic if defined else None,
        "spearman": spearmanr(*wide).statistic if defined else None,
    }


def main():
    warnings.simplefilter("ignore")
    cases = []
    for i in range(CASES):
        labels, predictions, figures = (classification, regression)[i % 2]()
        figures = {name: None if value is None else float(value) for name, value in figures.items()}
        cases.append({"labels": labels.tolist(), "predictions": predictions.tolist(), "figures": figures})
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
