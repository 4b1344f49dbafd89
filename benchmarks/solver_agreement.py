"""Every exact method against the exact damped Gauss-Newton solve: agreement of scores, and time.

    OMP_NUM_THREADS=1 python benchmarks/solver_agreement.py [linear table digits-mlp digits-cnn text] [--output agreement.json]

The truth is the Gauss-Newton matrix of the whole model over all training examples, written out and inverted in double precision, with the
same damping added on every unit as each method gets; gradients in double precision too. Methods run in single precision. Agreement is the
median over queries; an error of 1 is what scores of zero would have. Products are Gauss-Newton products over all examples (empirical Fisher
for datainf, one of them measures the residual), and times, fit, solve and scan together, are multiples of grad-dot-exact run just before:
of the processor's time, so that other programs on the machine matter little.

Axes: Q queries, N training examples, D parameters.
"""

import argparse
import copy
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

NUM_QUERIES = 32
SWEPT = (5, 10, 20, 40)
NEVER = 1e-9  # no query stops before its iterations are used up


@dataclass(frozen=True)
class Case:
    """A trained model, what it was trained on, and queries."""

    name: str
    task: object
    train: object
    queries: object


def linear(folder):
    """Linear regression, where K-FAC and EK-FAC are the Gauss-Newton matrix itself."""
    from whence.bench.data import diabetes
    from whence.data import Dataset
    from whence.records import Recipe
    from whence.tasks import Regression

    (inputs_ND, targets_N), (asked_QD, truths_Q) = diabetes()
    model = torch.nn.Linear(10, 1)
    with_one = torch.cat([inputs_ND, torch.ones(len(inputs_ND), 1)], 1).double()
    found = torch.linalg.lstsq(with_one, targets_N[:, None].double()).solution[:, 0].float()
    model.weight.data, model.bias.data = found[None, :-1], found[-1:]
    task = Regression(model, recipe=Recipe("sgd", 10.0))

    def dataset(prefix, rows, values):
        pairs = enumerate(zip(rows, values, strict=True))
        return task.prepare([{"id": f"{prefix}{n}", "inputs": row, "target": value} for n, (row, value) in pairs])

    queries = dataset("query-", asked_QD, truths_Q)
    return Case("linear", task, dataset("train-", inputs_ND, targets_N), Dataset(queries.examples[:NUM_QUERIES]))


def from_bench(name):
    """A setting of `whence bench`, its first model."""

    def make(folder):
        from whence.bench import prepare
        from whence.data import Dataset

        setting = prepare(name, folder)
        return Case(name, setting.task, setting.train, Dataset(setting.queries.examples[:NUM_QUERIES]))

    return make


def text(folder):
    """A GPT-2 of 2 layers and width 8 on 128 passages of 16 tokens of Python's documentation."""
    from whence.bench.data import documents
    from whence.data import Dataset
    from whence.demo.model import Settings, train_tokenizer
    from whence.demo.train import train
    from whence.tasks import CausalLM

    settings = Settings(vocabulary=320, context=16, heads=2, width=8, epochs=40, batch_examples=16, learning_rate=1e-2)
    records = documents()
    tokenizer = train_tokenizer((record["text"] for record in records), settings)
    prepared = CausalLM(torch.nn.Linear(1, 1), tokenizer, long="truncate", max_length=settings.context).prepare(records)
    whole = [example for example in prepared.examples if example.length == settings.context]
    train_set = Dataset(whole[:128])
    trained = train(train_set, len(tokenizer), settings=settings)
    task = CausalLM(trained.model, tokenizer, long="truncate", recipe=trained.recipe)
    return Case("text", task, train_set, Dataset(whole[128 : 128 + NUM_QUERIES]))


CASES = {
    "linear": linear,
    "table": from_bench("table"),
    "digits-mlp": from_bench("digits-mlp"),
    "digits-cnn": from_bench("digits-cnn"),
    "text": text,
}


class Truth:
    """The matrix and the gradients in double precision."""

    def __init__(self, case):
        from whence.capture import forecast, plan_units

        task = copy.copy(case.task)
        task.model = copy.deepcopy(task.model).double()
        self.plan = plan_units(task)
        positions = forecast(task, self.plan, case.train.examples).batch_positions

        def gradients(dataset, objective):
            from whence.compress import Kronecker
            from whence.curvature import flatten
            from whence.progress import meter
            from whence.score import Batching, gradient_rows

            whole = Kronecker(self.plan.units, (None,) * len(self.plan.units), (None,) * len(self.plan.units))
            with meter("", len(dataset), quiet=True) as progress:
                found = gradient_rows(
                    task,
                    self.plan,
                    whole,
                    dataset.examples,
                    batching=Batching(positions),
                    progress=progress,
                    objective=objective,
                )
            return flatten(found.units).double()

        self.queries_QD = gradients(case.queries, "measurement")
        self.train_ND = gradients(case.train, "loss")
        self.matrix_DD = gauss_newton(task, self.plan, case.train, gradients, positions)

    def scores(self, dampings):
        """-(1/N) grad m^T (G + damping)^-1 grad loss, shape (Q, N)."""
        sizes = torch.tensor([unit.outputs * unit.inputs for unit in self.plan.units])
        damping_D = torch.tensor(dampings, dtype=torch.float64).repeat_interleave(sizes)
        matrix_DD = (self.matrix_DD + self.matrix_DD.T) / 2 + torch.diag(damping_D)
        solved_DQ = torch.cholesky_solve(self.queries_QD.T, torch.linalg.cholesky(matrix_DD))
        return -(solved_DQ.T @ self.train_ND.T) / len(self.train_ND)

    def mean_eigenvalues(self):
        """Of each unit's own block of the matrix."""
        sizes = [unit.outputs * unit.inputs for unit in self.plan.units]
        return [float(part.mean()) for part in self.matrix_DD.diagonal().split(sizes)]


def gauss_newton(task, plan, train, gradients, positions):
    """The matrix, shape (D, D): from one gradient per class where an example has one row of outputs, else column by column."""
    from whence.curvature import Curvature, dense

    example = train.examples[0]
    outputs = task.outputs(task.model, task.collate([example]))
    if len(outputs.values_MC) > 1:
        return dense(Curvature(task, plan, train.examples, max_positions=positions))
    total_DD = 0.0
    for number in range(outputs.values_MC.shape[1]):

        def column(model, batch, number=number):  # of a square root of the loss's second derivative by the outputs
            found = task.outputs(model, batch)
            if found.likelihood == "gaussian":
                return found.values_MC[:, number]
            p_MC = found.values_MC.detach().softmax(1)
            return p_MC[:, number].sqrt() * (found.values_MC[:, number] - (p_MC * found.values_MC).sum(1))

        rows_ND = gradients(train, column)
        total_DD = total_DD + rows_ND.T @ rows_ND / len(rows_ND)
    return total_DD


def rows():
    """Label, method and settings of its solver, in the order of the table."""
    from whence.methods import EXACT_METHODS

    found = []
    for name, method in EXACT_METHODS.items():
        if method.needs_run:
            continue
        if method.solver in ("cg", "pcg"):
            found += [(f"{name} {count}", name, {"iterations": count, "tolerance": NEVER}) for count in SWEPT]
        else:
            found.append((name, name, {}))
    return found


def scored(case, method, dampings, options):
    """Scores of a method with one damping per unit, products spent, and seconds."""
    from whence.curvature import ResolvedDamping
    from whence.pipeline.exact.footprint import Demand
    from whence.pipeline.exact.precondition import preconditioned
    from whence.pipeline.exact.prepare import prepare
    from whence.pipeline.exact.query_gradients import query_gradients
    from whence.progress import meter
    from whence.score import exact_scores
    from whence.settings import Runtime, exact_settings

    start = time.process_time()
    demand = Demand(rows=len(case.queries), queries=len(case.queries))
    ready = prepare(case.task, case.train, exact_settings(method, options), demand, Runtime(quiet=True))
    units = zip(ready.plan.units, dampings, strict=True)
    scales = {name: value for unit, value in units for name in unit.parameters}
    damping = None if ready.curvature is None else ResolvedDamping(None, 1.0, "", scales)
    blocks, solution = preconditioned(ready, query_gradients(ready, case.queries), damping)
    with meter("scan", len(case.train), quiet=True) as progress:
        found = exact_scores(
            case.task, ready.plan, case.train.examples, blocks, max_positions=ready.max_positions, progress=progress
        )
    seconds = time.process_time() - start
    return found.scores_QN, 0.0 if solution is None else float(solution.products.max()), seconds


def compared(found_QN, truth_QN):
    """Medians over queries of Spearman's and Pearson's correlation and of the relative error."""
    from whence.evaluate import spearman

    centred, true = (x - x.mean(1, keepdim=True) for x in (found_QN, truth_QN))
    pearson_Q = (centred * true).sum(1) / (centred.norm(dim=1) * true.norm(dim=1))
    error_Q = (found_QN - truth_QN).norm(dim=1) / truth_QN.norm(dim=1)
    return [float(values.median()) for values in (spearman(found_QN, truth_QN), pearson_Q, error_Q)]


def dampings_of(case, truth):
    """By name of the choice, one number per unit."""
    from whence.curvature import choose_damping

    recipe = choose_damping(case.task.recipe, relative_damping=None, absolute_damping=None, default=1.0)
    means = truth.mean_eigenvalues()
    return {
        "recipe": [recipe.of_unit(unit, mean) for unit, mean in zip(truth.plan.units, means, strict=True)],
        "0.1 x mean": [0.1 * mean for mean in means],
    }


def run(case):
    """Every method on one case, printed as it comes."""
    start = time.process_time()
    truth = Truth(case)
    choices = dampings_of(case, truth)
    print(f"\n### {case.name}\n")
    values = ", ".join(f"{name} {min(found):.2g} to {max(found):.2g}" for name, found in choices.items())
    size, seconds = len(truth.matrix_DD), time.process_time() - start
    print(f"{size:,} parameters, {len(case.train):,} examples, {len(case.queries)} queries; the matrix took {seconds:.0f} s.")
    print(f"Damping: {values}.\n")
    print("| method | damping | Spearman | Pearson | relative error | products | time / grad-dot-exact |")
    print("|---|---|---|---|---|---|---|")
    scored(case, "grad-dot-exact", choices["recipe"], rows()[-1][2])  # the first run pays for imports and memory
    result = []
    for name, dampings in choices.items():
        truth_QN = truth.scores(dampings)
        for label, method, config in rows():
            *_, unit = scored(case, "grad-dot-exact", dampings, rows()[-1][2])
            found_QN, products, seconds = scored(case, method, dampings, config)
            rank, linear_part, error = compared(found_QN, truth_QN)
            print(
                f"| {label} | {name} | {rank:.3f} | {linear_part:.3f} | {error:.2g} | {products:.4g} | {seconds / unit:.3g} |",
                flush=True,
            )
            keys = ("method", "damping", "spearman", "pearson", "error", "products", "seconds", "unit")
            result.append(dict(zip(keys, (label, name, rank, linear_part, error, products, seconds, unit), strict=True)))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; all if left out")
    parser.add_argument("--output", type=Path, help="also write all numbers as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {name: run(CASES[name](folder)) for name in arguments.cases or CASES}
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
