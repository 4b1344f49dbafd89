"""Bases of EK-FAC without an eigendecomposition: what they cost, and what the scores lose.

    OMP_NUM_THREADS=1 python benchmarks/basis_experiment.py

Compared with the eigenvectors of the covariances: a basis updated while the covariances stream in, one step of orthogonal iteration
(Q <- QR of C Q, as SOAP does) per batch, from the identity; and a few such steps from the eigenvectors of an earlier checkpoint. The
eigenvalues are measured again in each basis, so that only the basis differs.

Axes: N a side, Q queries.
"""

import time
from dataclasses import replace
from functools import partial

import torch

SIDES = (64, 128, 256, 512, 1024)
CHUNKS = 16


def timed(step, repeats=3):
    """Seconds of the fastest of some repeats."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return min(found)


def rotated(covariance_NN, basis_NN):
    """One step of orthogonal iteration."""
    return torch.linalg.qr(covariance_NN @ basis_NN)[0]


def basis_step():
    """Time of one eigendecomposition and of one step, by side."""
    print(
        "| side | eigendecomposition, ms | one QR step, ms | QR step in single precision, ms | steps per eigendecomposition |"
    )
    print("|---|---|---|---|---|")
    for side in SIDES:
        # Eigenvalues that fall like 1/k, as covariances of activations about do.
        rows = torch.randn(2 * side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(side))
        rows = rows / torch.arange(1, side + 1).double().sqrt()
        covariance_NN, eye_NN = rows.T @ rows, torch.eye(side, dtype=torch.float64)
        start_NN = rotated(covariance_NN, eye_NN)
        whole = timed(partial(torch.linalg.eigh, covariance_NN))
        step = timed(partial(rotated, covariance_NN, start_NN))
        single = timed(partial(rotated, covariance_NN.float(), start_NN.float()))
        print(f"| {side} | {1e3 * whole:.2f} | {1e3 * step:.2f} | {1e3 * single:.2f} | {whole / step:.1f} |", flush=True)


def setting():
    """A GPT-2 of 2 layers and width 64 on 256 passages, an earlier checkpoint of the same seed, and 32 queries."""
    from whence.bench.data import documents
    from whence.data import Dataset
    from whence.demo.model import Settings, train_tokenizer
    from whence.demo.train import train
    from whence.tasks import CausalLM

    settings = Settings(vocabulary=512, context=48, width=64, epochs=6, batch_examples=16)
    records = documents()[:3000]
    tokenizer = train_tokenizer((record["text"] for record in records), settings)
    prepared = CausalLM(torch.nn.Linear(1, 1), tokenizer, long="truncate", max_length=settings.context).prepare(records)
    whole = [example for example in prepared.examples if example.length == settings.context]
    train_set, queries = Dataset(whole[:256]), Dataset(whole[256:288])

    def task(epochs):
        trained = train(train_set, len(tokenizer), settings=replace(settings, epochs=epochs))
        return CausalLM(trained.model, tokenizer, long="truncate")

    return task(settings.epochs), task(settings.epochs // 2), train_set, queries


def sums(fit):
    """The covariances of a fit's data, not divided."""
    from whence.curvature.kfac import fit_factors
    from whence.progress import meter

    with meter("", 1, quiet=True) as progress:
        return fit_factors(fit, progress)


def sides(factors, bases):
    """By name of each basis that is not the identity, the matrix whose eigenvectors it holds, as K-FAC's fit weighs a unit's roles."""
    found = {}
    for name in bases:
        side, index = name.split(".")
        if side not in ("outputs", "inputs"):
            continue
        other = "inputs" if side == "outputs" else "outputs"
        roles = [key.split(".")[2] for key in factors if key.startswith(f"count.{index}.")]
        total_NN = 0.0
        for role in roles:
            mine, their = (factors[f"{one}.{index}.{role}"].double() for one in (side, other))
            trace = float((their.diagonal() if their.ndim == 2 else their).sum())
            total_NN = total_NN + trace / float(factors[f"count.{index}.{role}"]) * (
                mine if mine.ndim == 2 else torch.diag(mine)
            )
        found[name] = total_NN
    return found


def eigenvectors(covariances):
    return {name: torch.linalg.eigh(matrix)[1] for name, matrix in covariances.items()}


def steps(covariances, bases, count):
    for _ in range(count):
        bases = {name: rotated(matrix, bases[name]) for name, matrix in covariances.items()}
    return bases


def scores():
    """Agreement of scores with those in the eigenvectors' bases."""
    from whence.capture import plan_units
    from whence.curvature import ResolvedDamping
    from whence.curvature.ekfac import fit_values
    from whence.curvature.kfac import FitRun, prepare_fit, solve_bases
    from whence.data import Dataset
    from whence.evaluate import spearman
    from whence.methods import exact_method_named
    from whence.pipeline.exact.prepare import Prepared
    from whence.pipeline.exact.query_gradients import query_gradients
    from whence.progress import meter
    from whence.score import exact_scores
    from whence.settings import FitConfig

    task, earlier, train, queries = setting()
    plan = plan_units(task)
    positions = 2048

    def fit_of(one, dataset, seed=0):
        return prepare_fit(one, plan_units(one), dataset, FitConfig(seed=seed), FitRun(max_positions=positions, quiet=True))

    fit = fit_of(task, train)
    ready = Prepared(task, plan, train, None, positions, exact_method_named("ekfac"), True, footprint=None, folder=None)
    rows = query_gradients(ready, queries)

    def scored(bases, fitted=fit):
        bases = {name: value.float() for name, value in bases.items()}
        with meter("", 1, quiet=True) as progress:
            curvature = fitted.finish(bases, fit_values(fitted, bases, progress, range(len(plan.units))))
            blocks = curvature.solve(rows, ResolvedDamping(0.1, None, ""))
            return exact_scores(task, plan, train.examples, blocks, max_positions=positions, progress=progress).scores_QN

    with meter("", 1, quiet=True) as progress:
        factors = sums(fit)
        known = solve_bases(fit, factors, progress)
        again_fit = fit_of(task, train, seed=1)
        again = solve_bases(again_fit, sums(again_fit), progress)
    covariances = sides(factors, known)
    start = eigenvectors(sides(sums(fit_of(earlier, train)), known))
    eye = {name: torch.eye(len(matrix), dtype=torch.float64) for name, matrix in covariances.items()}
    parts = [Dataset(train.examples[place::CHUNKS]) for place in range(CHUNKS)]
    streamed = [sums(fit_of(task, part)) for part in parts]

    def online(bases):
        total = None
        for more in streamed:
            total = more if total is None else {name: value + more[name] for name, value in total.items()}
            bases = steps(sides(total, known), bases, 1)
        return bases

    makers = {
        "eigenvectors": lambda: eigenvectors(covariances),
        f"online, one step per batch, {CHUNKS} batches": lambda: online(eye),
        "the same from the first batch's eigenvectors": lambda: online(eigenvectors(sides(streamed[0], known))),
        "earlier checkpoint's, as they are": lambda: start,
        **{f"earlier checkpoint's, {count} QR steps": partial(steps, covariances, start, count) for count in (1, 2, 4)},
        "identity": lambda: eye,
    }
    true_QN = scored(known)
    print(f"\n{len(covariances)} bases of sides {', '.join(map(str, sorted({len(one) for one in covariances.values()})))}.\n")
    print("| basis | seconds of all basis steps | Spearman with eigenvectors: median | lowest query |")
    print("|---|---|---|---|")
    for name, make in makers.items():
        began = time.perf_counter()
        bases = make()
        seconds = time.perf_counter() - began
        agreement_Q = spearman(scored({**known, **bases}), true_QN)
        print(f"| {name} | {seconds:.3f} | {float(agreement_Q.median()):.4f} | {float(agreement_Q.min()):.4f} |", flush=True)
    agreement_Q = spearman(scored(again, again_fit), true_QN)
    print(f"| eigenvectors, other draws of labels | | {float(agreement_Q.median()):.4f} | {float(agreement_Q.min()):.4f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    basis_step()
    scores()
