"""A table of numbers: logistic regression by scikit-learn, and what leaving out a row does, predicted and done.

    python examples/tables.py

Needs `pip install 'whence-tda[bench]'`. Takes a few seconds.
"""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import whence

ROWS, PENALTY = 300, 1e-2


def fit(X, y):
    """The minimum of summed cross-entropy + ROWS x PENALTY / 2 x the squared weights, as a linear layer with two outputs."""
    found = LogisticRegression(C=1 / (PENALTY * ROWS), fit_intercept=False, tol=1e-10, max_iter=1000).fit(X, y)
    model = torch.nn.Linear(X.shape[1], 2, bias=False).double()
    with torch.no_grad():
        # Half to each class: the difference of the logits is scikit-learn's, and the penalty on both halves is doubled back.
        model.weight[:] = torch.from_numpy(np.concatenate([-found.coef_, found.coef_]) / 2)
    return model


def main():
    """Predicted and true effects of leaving out a row on the loss of others; their correlation."""
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    X, y, asked, truth = X[:ROWS], y[:ROWS], X[ROWS : ROWS + 20], y[ROWS : ROWS + 20]
    task = whence.Classification(fit(X, y))
    queries = whence.load_arrays(asked, truth)
    table = whence.attribute(
        task,
        whence.load_arrays(X, y),
        queries,
        method=whence.settings.PCG(damping=whence.Damping(absolute=2 * PENALTY), fit=whence.FitConfig(labels="exact")),
        runtime=whence.Runtime(quiet=True),
    )
    batch = task.collate(task.prepare(queries).examples)
    before = task.measurement(task.model, batch).detach()
    rows = np.random.default_rng(0).choice(ROWS, 40, replace=False)
    # The penalty stays what it was: only the row is gone.
    after = torch.stack([task.measurement(fit(*left_out(X, y, row)), batch).detach() for row in rows], 1)
    predicted, done = table.removal_effect()[:, rows], after - before[:, None]
    correlation = float(np.corrcoef(predicted.flatten(), done.flatten())[0, 1])
    print(f"correlation of {done.numel()} predicted and true effects of leaving out one of {ROWS} rows: {correlation:.3f}")
    return correlation


def left_out(X, y, row):
    """The table without a row."""
    keep = np.arange(len(y)) != row
    return X[keep], y[keep]


if __name__ == "__main__":
    main()
