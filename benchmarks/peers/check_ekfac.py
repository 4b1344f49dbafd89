"""Is kronfluence's EK-FAC what its paper says? The adapter's table on a small MLP against the formulas, written out in float64.

    python benchmarks/peers/check_ekfac.py

With the training labels in the Fisher instead of sampled ones, so that nothing is random. George et al. 2018, section 3.2, and Grosse et al.
2023, section 2.4: eigenvectors of the two covariances of a layer, and the second moment of the gradients in that basis; everything a mean
over examples.
"""

import torch
from check_signs import digits
from exchange import Setting
from kronfluence_scores import Analysis

from whence.data import Dataset

DAMPINGS = (None, 1e-3)


def gradients_by_layer(task, dataset):
    """Weight and bias gradients of each example's loss side by side, with the layer's input and output gradient, by layer."""
    model = task.model.double()
    found = {}
    for example in dataset.examples:
        kept = {}

        def keep(layer, inputs, output, kept=kept):
            kept[layer] = (torch.cat([inputs[0][0], torch.ones(1, dtype=torch.float64)]), output)

        layers = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
        handles = [layer.register_forward_hook(keep) for layer in layers]
        loss = task.loss(model, task.collate([example])).sum()
        output_grads = torch.autograd.grad(loss, [kept[layer][1] for layer in layers])
        for number, (layer, grad) in enumerate(zip(layers, output_grads, strict=True)):
            found.setdefault(number, []).append((kept[layer][0].detach(), grad[0]))
        for handle in handles:
            handle.remove()
    return [tuple(torch.stack(side) for side in zip(*pairs, strict=True)) for pairs in found.values()]


def direct(task, train, queries, damping):
    """Scores by the formulas, shape (queries, train)."""
    total = 0
    for (x_NI, g_NO), (x_QI, g_QO) in zip(gradients_by_layer(task, train), gradients_by_layer(task, queries), strict=True):
        inputs_II = torch.linalg.eigh(x_NI.T @ x_NI / len(x_NI)).eigenvectors
        outputs_OO = torch.linalg.eigh(g_NO.T @ g_NO / len(g_NO)).eigenvectors
        train_NOI = torch.einsum("no,ni->noi", g_NO @ outputs_OO, x_NI @ inputs_II)
        query_QOI = torch.einsum("qo,qi->qoi", g_QO @ outputs_OO, x_QI @ inputs_II)
        moment_OI = train_NOI.square().mean(0)
        inverse_OI = 1 / (moment_OI + (0.1 * moment_OI.mean() if damping is None else damping))
        total = total + torch.einsum("qoi,oi,noi->qn", query_QOI, inverse_OI, train_NOI)
    return total


def main():
    task, train = digits()
    setting = Setting(task, train, Dataset(train.examples[:8]))
    for damping in DAMPINGS:
        task.model.float()
        table = Analysis(empirical=True).table(setting, "ekfac", damping)
        wanted = direct(task, setting.train, setting.queries, damping)
        difference = (torch.as_tensor(table.scores).double() - wanted).norm() / wanted.norm()
        print(f"{table.method}: relative difference {difference:.1e}")


if __name__ == "__main__":
    main()
