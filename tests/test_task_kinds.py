"""Tasks beside language models and plain labels: each loss written out, its gradients, its curvature and its influence, by slow twins."""

import copy
import json
import math

import pytest
import torch
from torch import nn

import whence
from tests.conftest import save_tokenizer
from tests.pages import run_blocks
from tests.reference import curvature as reference
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.settings import QUIET
from tests.test_capture import assert_same_sum, captured
from whence.capture import check_task, plan_units
from whence.curvature import Curvature, dense
from whence.curvature.labels import check_outputs
from whence.errors import BadInput, UnknownOption, Unsupported
from whence.tasks import Preference, RewardWeighted, Seq2Seq, TokenClassification

transformers = pytest.importorskip("transformers")

PAIRS = [
    {"prompt": "ab", "chosen": "cde", "rejected": "f", "id": "a"},
    {"prompt": "b", "chosen": "gh", "rejected": "ijklm", "id": "b"},
    {"prompt": "cab", "chosen": "d", "rejected": "ee", "id": "c"},
]
TURNS = [{"prompt": "abc", "completion": "de"}, {"prompt": "f", "completion": "ghijk"}, {"prompt": "klmno", "completion": "p"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One token per byte, an end mark that also fills up."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return transformers.AutoTokenizer.from_pretrained(folder, pad_token="<|end|>")


def model_of(kind, **more):
    torch.manual_seed(1)
    small = {"vocab_size": 257, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0}
    if kind == "t5":
        config = transformers.T5Config(
            d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, decoder_start_token_id=0, dropout_rate=0.0, **small, **more
        )
        return transformers.T5ForConditionalGeneration(config).double()
    if kind == "bart":
        config = transformers.BartConfig(
            d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=8,
            decoder_ffn_dim=8, max_position_embeddings=16, decoder_start_token_id=0, forced_eos_token_id=0, **small, **more,
        )  # fmt: skip
        return transformers.BartForConditionalGeneration(config).double()
    if kind.startswith("gpt2"):
        config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, n_positions=24, **small, **more)
        cls = transformers.GPT2LMHeadModel if kind == "gpt2" else transformers.GPT2ForSequenceClassification
        return cls(config).double()
    config = transformers.BertConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        **small,
        **more,
    )
    cls = transformers.BertForTokenClassification if kind == "tagger" else transformers.BertForSequenceClassification
    return cls(config).double()


def rows_of(count=4, size=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


def mlp(outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def made(name, tokenizer):
    """A task and its records."""
    if name in ("t5", "bart"):
        return Seq2Seq(model_of(name), tokenizer), TURNS
    if name == "tagger":
        task = TokenClassification(model_of("tagger", num_labels=3), tokenizer, labels=["O", "B", "I"])
        return task, [{"tokens": ["ab", "c"], "labels": ["O", "B"]}, {"tokens": ["def", "g", "h"], "labels": [2, None, 0]}]
    if name == "pairs":
        records = [{"text": "ab", "text_pair": "cde", "label": 1}, {"text": "f", "text_pair": "g", "label": 0}]
        return whence.Classification(model_of("bert", num_labels=2), tokenizer), records
    if name == "multi":
        labels = [[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]]
        return whence.Classification(mlp(3), labelling="multi"), list(zip(rows_of(), labels, strict=True))
    if name == "soft":
        shares = [[0.5, 0.25, 0.25], [1, 0, 0], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]
        return whence.Classification(mlp(3), labelling="soft"), list(zip(rows_of(), shares, strict=True))
    if name == "several targets":
        records = [{"text": "abc", "target": [0.5, -1.0]}, {"text": "d", "text_pair": "ef", "target": [2.0, 0.0]}]
        return whence.Regression(model_of("bert", num_labels=2), tokenizer), records
    if name == "dpo":
        return Preference(model_of("gpt2"), tokenizer, reference=other_model(), beta=0.3), PAIRS
    if name in ("reward", "reward of an encoder"):
        kind = "gpt2 reward" if name == "reward" else "bert"
        records = (
            PAIRS if name == "reward" else [{"text": p["prompt"], **{s: p[s] for s in ("chosen", "rejected")}} for p in PAIRS]
        )
        return Preference(model_of(kind, num_labels=1), tokenizer, form="bradley-terry"), records
    group = {"prompt": "ab", "completions": ["c", "de", "fgh"], "rewards": [1.0, 0.0, 0.5], "id": "g"}
    return RewardWeighted(model_of("gpt2"), tokenizer), [group, {"prompt": "x", "completion": "yz", "advantage": -2.0}]


def other_model():
    torch.manual_seed(7)
    model = model_of("gpt2")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


KINDS = (
    "t5", "bart", "tagger", "pairs", "multi", "soft", "several targets", "dpo", "reward", "reward of an encoder", "reward weighted",
)  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_autograds_one_example_at_a_time(name, tokenizer):
    task, records = made(name, tokenizer)
    dataset = task.prepare(records)
    for objective in ("loss", "measurement"):
        plan = plan_units(task)
        check_task(task, plan, dataset.examples, objective=objective)  # which units go through the twin is seen there
        _, found = captured(task, dataset, objective=objective, plan=plan)
        wanted = unit_gradients(task, plan, dense_gradients(task, dataset.examples, objective))
        for actual, expected in zip(found, wanted, strict=True):
            if name == "t5":  # whose attention is float32 in any case
                torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * float(expected.abs().max()) + 1e-7)
            else:
                assert_same_sum(actual, expected, terms=4096)


def log_p(model, prompt, answer):
    """Log-probability of an answer's bytes, one after the other."""
    ids = [*prompt, *answer]
    logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logits[place - 1, ids[place]] for place in range(len(prompt), len(ids)))


def test_losses_are_what_they_say(tokenizer):
    def ids(text):
        return tokenizer(text)["input_ids"]

    task, records = made("dpo", tokenizer)
    found = task.loss(task.model.eval(), task.collate(task.prepare(records).examples))
    for loss, record in zip(found, records, strict=True):
        chosen, rejected = (
            log_p(task.model, ids(record["prompt"]), ids(record[side])) - log_p(task.reference, ids(record["prompt"]), ids(record[side]))
            for side in ("chosen", "rejected")
        )  # fmt: skip
        h = chosen - rejected
        torch.testing.assert_close(loss, -nn.functional.logsigmoid(0.3 * h))

    task, records = made("reward", tokenizer)
    found = task.loss(task.model.eval(), task.collate(task.prepare(records).examples))
    for loss, record in zip(found, records, strict=True):
        chosen, rejected = (
            task.model(input_ids=torch.tensor([ids(record["prompt"] + record[side])])).logits[0, 0]
            for side in ("chosen", "rejected")
        )
        torch.testing.assert_close(loss, -(chosen - rejected).sigmoid().log())

    task, records = made("reward weighted", tokenizer)
    found = task.loss(task.model.eval(), task.collate(task.prepare(records).examples))
    rewards = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    advantages = [*((rewards - 0.5) / (rewards.std() + 1e-4)), -2.0]
    answers = [("ab", "c"), ("ab", "de"), ("ab", "fgh"), ("x", "yz")]
    for loss, advantage, (prompt, answer) in zip(found, advantages, answers, strict=True):
        torch.testing.assert_close(loss, -advantage / len(answer) * log_p(task.model, ids(prompt), ids(answer)))

    task, records = made("multi", tokenizer)
    found = task.loss(task.model, task.collate(task.prepare(records).examples))
    for loss, (row, labels) in zip(found, records, strict=True):
        p = task.model(row).sigmoid()
        torch.testing.assert_close(loss, -sum((q if label else 1 - q).log() for q, label in zip(p, labels, strict=True)))
    task, records = made("soft", tokenizer)
    found = task.loss(task.model, task.collate(task.prepare(records).examples))
    for loss, (row, shares) in zip(found, records, strict=True):
        torch.testing.assert_close(loss, -(torch.tensor(shares) * task.model(row).log_softmax(-1)).sum())


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_decoders_loss_is_the_models_own(kind, tokenizer):
    task = Seq2Seq(model_of(kind), tokenizer)
    found = task.loss(task.model.eval(), task.collate(task.prepare(TURNS).examples))
    for loss, record in zip(found, TURNS, strict=True):
        inputs, labels = (torch.tensor([tokenizer(record[name])["input_ids"]]) for name in ("prompt", "completion"))
        mean = task.model(input_ids=inputs, labels=labels).loss
        torch.testing.assert_close(loss, mean * labels.numel())


@pytest.mark.parametrize("name", KINDS)
def test_outputs_say_what_the_loss_is(name, tokenizer):
    task, records = made(name, tokenizer)
    dataset = task.prepare(records)
    check_outputs(task, dataset.examples)
    batch = task.collate(dataset.examples)
    task.model.eval()
    outputs = task.outputs(task.model, batch)
    losses = task.loss(task.model, batch)
    torch.testing.assert_close(outputs.losses(len(dataset)), losses)
    (by_values,) = torch.autograd.grad(outputs.losses(len(dataset)).sum(), outputs.values_MC, retain_graph=True)
    torch.testing.assert_close(outputs.residuals(), by_values)
    if name != "reward weighted":
        # TRAK's chain rule: the weight is minus the derivative of the loss by the output function.
        values = task.output_function(task.model, batch)
        table = next(parameter for parameter in task.model.parameters() if parameter.requires_grad)
        (by_output,) = torch.autograd.grad(
            (values * task.output_weights(values, batch).detach()).sum(), table, retain_graph=True
        )
        (by_loss,) = torch.autograd.grad(-losses.sum(), table)
        torch.testing.assert_close(by_output, by_loss)


SMALL = ("multi", "soft", "dpo", "reward", "reward weighted", "bart", "tagger")


@pytest.mark.parametrize("name", SMALL)
def test_curvature_and_influence_are_the_dense_ones(name, tokenizer):
    task, records = made(name, tokenizer)
    last = {"multi": "2.*", "soft": "2.*", "bart": "*decoder*fc2.weight", "tagger": "classifier.*", "reward": "score.*"}
    task.tracked = frozenset(whence.Custom(task.model, task.loss, track=[last.get(name, "*attn.c_proj.*")]).tracked)
    if name in ("bart", "reward weighted"):  # a gradient for each of 257 logits of a token takes its time
        group = {"prompt": "ab", "completions": ["c", "de"], "rewards": [1.0, 0.0]}
        records = [{"prompt": "ab", "completion": text} for text in "cd"] if name == "bart" else [group]
    dataset = task.prepare(records)
    plan = plan_units(task)
    matrix = reference.gauss_newton(task, plan, dataset.examples)
    assert float(matrix.abs().max()) > 1e-8
    torch.testing.assert_close(dense(Curvature(task, plan, dataset.examples)), matrix, rtol=1e-8, atol=1e-12)
    damping = 0.1 * float(matrix.diagonal().mean())
    method = whence.settings.PCG(damping=whence.Damping(absolute=damping), tolerance=1e-12, iterations=500)
    table = whence.attribute(task, dataset, dataset, method=method, runtime=QUIET)
    flat = {
        which: reference.flat_rows(unit_gradients(task, plan, dense_gradients(task, dataset.examples, which)))
        for which in ("loss", "measurement")
    }
    inverse = torch.linalg.inv(matrix + damping * torch.eye(len(matrix), dtype=torch.float64))
    expected = -flat["measurement"] @ inverse @ flat["loss"].T / len(dataset)
    torch.testing.assert_close(table.scores.double(), expected, rtol=1e-5, atol=1e-7 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["bart", "dpo", "tagger", "reward weighted"])
def test_padding_is_no_part_of_the_factors(name, tokenizer):
    """Of an encoder and its decoder neither, whose positions differ in number."""
    task, records = made(name, tokenizer)
    method = whence.settings.KFAC(fit=whence.FitConfig(labels="sampled"))
    alone, together = (
        whence.attribute(task, records, records[-1:], method=method, runtime=whence.Runtime(quiet=True, batch_positions=size))
        for size in (1, 10_000)
    )
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-7, atol=1e-9 * float(alone.scores.abs().max()))


def test_the_fisher_of_drawn_yes_and_no_is_the_gauss_newton_matrix(tokenizer):
    """Exact labels take every output once, weighted, and give the same K-FAC as many draws do."""
    task, records = made("multi", tokenizer)
    dataset, plan = task.prepare(records), plan_units(made("multi", tokenizer)[0])
    batch = task.collate(dataset.examples)
    outputs = task.outputs(task.model, batch)
    draws = [
        outputs.sampled([torch.Generator().manual_seed(97 * seed + row) for row in range(4)]).residuals()
        for seed in range(3000)
    ]
    moment = sum(torch.einsum("mc,md->mcd", draw, draw) for draw in draws) / len(draws)
    p = outputs.values_MC.detach().sigmoid()
    # Six standard errors of a mean of products of at most one.
    assert (moment - torch.diag_embed(p * (1 - p))).abs().max() < 6 / 3000**0.5
    from whence.curvature.labels import choose_labels, objectives

    rule = choose_labels(task, dataset.examples, "auto", samples=None, seed=0)
    assert rule.kind == "exact" and rule.passes == 3
    total = 0
    for objective in objectives(task, rule, dataset.examples, stage="values"):

        def alone(model, inner, objective=objective):
            return objective(model, (inner, torch.arange(1)))

        rows = reference.flat_rows(unit_gradients(task, plan, dense_gradients(task, dataset.examples, alone)))
        total = total + rows.T @ rows / len(rows)
    torch.testing.assert_close(total, reference.gauss_newton(task, plan, dataset.examples))


def test_which_pairs_taught_an_answer(tokenizer):
    """A query of one completion is measured by its log-probability, and needs neither a reference nor an answer beside it."""
    task, records = made("dpo", tokenizer)
    query = {"prompt": "ab", "completion": "cde"}
    batch = task.collate(task.prepare([query]).examples)
    ids = [tokenizer(query[name])["input_ids"] for name in ("prompt", "completion")]
    torch.testing.assert_close(task.measurement(task.model.eval(), batch)[0], log_p(task.model, *ids))
    with pytest.raises(BadInput, match="that has no rejected answer; needed 'chosen' and 'rejected'"):
        task.loss(task.model, batch)
    table = whence.attribute(task, records, [query], method="grad-dot-exact", runtime=QUIET)
    assert table.unit.startswith("inner product") and float(table.scores[0, 0]) > 0  # the pair that chose this very answer
    without = Preference(copy.deepcopy(task.model), tokenizer, beta=0.3)
    with pytest.raises(BadInput, match="pairs without the log-probabilities of a reference"):
        whence.attribute(without, PAIRS, [query], method="grad-dot-exact", runtime=QUIET)
    # Records that bring the reference along give the same examples.
    reference_logps = [
        {
            f"ref_{side}_logps": float(
                log_p(task.reference, *(tokenizer(record[name])["input_ids"] for name in ("prompt", side)))
            )
            for side in ("chosen", "rejected")
        }
        for record in PAIRS
    ]
    brought = without.prepare([record | more for record, more in zip(PAIRS, reference_logps, strict=True)])
    asked = task.prepare(PAIRS)
    for one, other in zip(brought.examples, asked.examples, strict=True):
        assert math.isclose(float(one.fields["reference"]), float(other.fields["reference"]), rel_tol=1e-9)


def test_parts_of_tokens_of_both_answers_add_up(tokenizer):
    task, records = made("dpo", tokenizer)
    table = whence.attribute(task, records, records, method="grad-dot-exact", tokens_of=["a", "b", "c"], runtime=QUIET)
    for column, record in enumerate(records):
        torch.testing.assert_close(table.tokens[record["id"]].sum(1).double(), table.scores[:, column].double())


def test_labels_by_name_and_shown(tokenizer):
    names = whence.Classification(mlp(3), labelling="multi", labels=["red", "green", "blue"])
    row = rows_of(1)[0]
    found = names.prepare(
        [{"inputs": row, "label": ["blue", "red"], "id": "x"}, {"inputs": row, "label": [], "id": "y"}]
    ).examples
    assert found[0].fields["target"].tolist() == [1, 0, 1] and found[1].fields["target"].tolist() == [0, 0, 0]
    assert names.label_name(found[0].fields["target"]) == "red, blue" and names.label_name(found[1].fields["target"]) == "none"
    soft = whence.Classification(mlp(3), labelling="soft", labels=["red", "green", "blue"])
    assert soft.prepare([(row, {"blue": 0.75, "red": 0.25})]).examples[0].fields["target"].tolist() == [0.25, 0, 0.75]
    assert soft.seen_labels(torch.tensor([[0.0, 2.0, 1.0]])) == ["green"]
    tagger, records = made("tagger", tokenizer)
    # The first byte of a word has its label, and a word without a label has none.
    assert tagger.prepare(records).examples[1].fields["labels"].tolist() == [2, -100, -100, -100, 0]
    everywhere = TokenClassification(tagger.model, tokenizer, labels=["O", "B", "I"], scored="all")
    assert everywhere.prepare(records).examples[1].fields["labels"].tolist() == [2, 2, 2, -100, 0]


def test_a_store_of_each_answers(tokenizer, tmp_path):
    for name in ("t5", "multi", "dpo", "tagger"):
        task, records = made(name, tokenizer)
        store = whence.build(task, records, tmp_path / name, config=whence.BuildConfig(method="logra", rank=4), runtime=QUIET)
        hits = whence.query(store, task, records[:1], k=1, runtime=QUIET)
        assert hits.proponents[0][0].id and hits.measurement_unit == task.unit
    assert hits.proponents and whence.store.open_store(tmp_path / "multi").example(0)["label"] == "0, 2"


REFUSED = [
    (lambda t: Seq2Seq(model_of("bart"), t), {"prompt": "a"}, "record 0 with the fields .'prompt'.; needed a mapping with 'prompt' and"),
    (lambda t: Seq2Seq(model_of("bart"), t), {"prompt": "a", "completion": "b" * 16}, "of 16 tokens; needed at most 15, the model's"),
    (lambda t: Seq2Seq(model_of("bart"), t), {"prompt": "a", "completion": ""}, "record 0 with nothing to read or nothing to write"),
    (lambda t: Seq2Seq(model_of("bart"), None), {"prompt": "a", "completion": "b"}, "a text for a task without a tokenizer"),
    (lambda t: made("tagger", t)[0], {"tokens": ["a", "b"], "labels": ["O"]}, "record 0 with 1 labels for 2 tokens"),
    (lambda t: made("tagger", t)[0], {"tokens": ["a"], "labels": ["X"]}, "record 0 with the label 'X'; needed one class number from 0"),
    (lambda t: made("tagger", t)[0], {"tokens": ["a"], "labels": [None]}, "record 0 with no scored token"),
    (lambda t: made("tagger", t)[0], {"tokens": "ab", "labels": [0, 1]}, "whose 'tokens' are a str; needed a list of words"),
    (lambda t: made("pairs", t)[0], {"text": "a", "text_pair": "", "label": 0}, "record 0 without a second text; needed a non-empty"),
    (lambda t: made("multi", t)[0], (rows_of()[0], [0, 1, 2]), r"record 0 with the label \[0, 1, 2\]; needed a 0 or 1 for each class"),
    (
        lambda t: whence.Classification(mlp(3), labelling="multi", labels=["a", "b", "c"]), (rows_of()[0], [0, 1]),
        "record 0 with 2 labels; needed a 0 or 1 for each of the 3 classes, or a list of some of a, b, c",
    ),
    (lambda t: made("soft", t)[0], (rows_of()[0], [0.5, 0.4, 0.2]), "probabilities that add up to 1.1; needed numbers of 0 or more"),
    (lambda t: made("dpo", t)[0], {"prompt": "a", "rejected": "b"}, "without 'chosen'; needed 'prompt', 'chosen' and 'rejected'"),
    (lambda t: made("dpo", t)[0], {"prompt": "a", "chosen": "b"}, "without 'rejected'"),
    (lambda t: made("dpo", t)[0], PAIRS[0] | {"ref_chosen_logps": -1.0}, "ref_rejected_logps=None .id 'a'.; needed a finite log-probability"),
    (
        lambda t: made("reward weighted", t)[0], {"prompt": "a", "completions": ["b", "c"], "rewards": [1.0]},
        "record 0 with 1 rewards for 2 completions; needed a number for every completion",
    ),
    (
        lambda t: made("reward weighted", t)[0], {"prompt": "a", "completion": "b", "advantage": math.inf},
        "record 0 with the advantage inf; needed a finite number",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "record", "says"), REFUSED)
def test_bad_records_in_one_line(make, record, says, tokenizer):
    with pytest.raises(BadInput, match=says) as caught:
        make(tokenizer).prepare([record])
    assert "\n" not in str(caught.value)


def test_bad_settings(tokenizer):
    gpt2 = model_of("gpt2")
    with pytest.raises(Unsupported, match="a GPT2LMHeadModel, which makes no inputs for a decoder"):
        Seq2Seq(gpt2, tokenizer)
    with pytest.raises(UnknownOption, match="form='ppo'; needed one of: dpo, bradley-terry"):
        Preference(gpt2, tokenizer, form="ppo")
    with pytest.raises(BadInput, match="found beta=0; needed a positive number"):
        Preference(gpt2, tokenizer, beta=0)
    with pytest.raises(BadInput, match="a reference for form='bradley-terry'"):
        Preference(gpt2, tokenizer, form="bradley-terry", reference=gpt2)
    with pytest.raises(UnknownOption, match="labelling='several'; needed one of: single, multi, soft"):
        whence.Classification(mlp(2), labelling="several")
    with pytest.raises(UnknownOption, match="per='word'; needed one of: sequence, token"):
        RewardWeighted(gpt2, tokenizer, per="word")
    two = Preference(model_of("gpt2 reward", num_labels=2), tokenizer, form="bradley-terry")
    with pytest.raises(BadInput, match="a reward model that returns numbers of shape .6, 2. for 6 answers"):
        two.loss(two.model, two.collate(two.prepare(PAIRS).examples))
    multi = whence.Classification(mlp(3), labelling="multi")
    with pytest.raises(BadInput, match=r"labels of shape \(1, 2\) for logits of shape \(1, 3\)"):
        multi.loss(multi.model, multi.collate(multi.prepare([(rows_of()[0], [0, 1])]).examples))
    weighted = RewardWeighted(gpt2, tokenizer)
    with pytest.raises(BadInput, match="a training record without an advantage"):
        whence.attribute(weighted, TURNS, TURNS, method="grad-dot-exact", runtime=QUIET)


def saved(folder, model, tokenizer):
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


COMMANDS = [
    ("seq2seq", "bart", {}, TURNS, ["--functional"]),
    ("token_classification", "tagger", {"num_labels": 3}, [{"tokens": ["ab", "c"], "labels": [0, 2]}], []),
    ("regression", "bert", {"num_labels": 2}, [{"text": "a", "text_pair": "b", "target": [0.5, 1.0]}], []),
    ("classification", "bert", {"num_labels": 3}, [{"text": "a", "label": [0, 1, 1]}], ["--labelling", "multi"]),
    ("reward", "gpt2 reward", {"num_labels": 1}, PAIRS, []),
    ("reward_weighted", "gpt2", {}, [{"prompt": "a", "completions": ["b", "cd"], "rewards": [0, 1]}], []),
]


@pytest.mark.parametrize(("kind", "model", "more", "records", "options"), COMMANDS)
def test_each_from_the_command_line(kind, model, more, records, options, run, tmp_path, tokenizer):
    folder, data = saved(tmp_path / "m", model_of(model, **more), tokenizer), lines(tmp_path / "train.jsonl", records)
    words = [folder, data, data, "--task", kind, *options, "-o", tmp_path / "t", "--method", "grad-dot-exact"]
    assert json.loads(run("attribute", *words))["train"] >= len(records)
    wrong = lines(tmp_path / "wrong.jsonl", [{"nothing": 1}])
    assert "found record 0 with the fields ['nothing']" in run("attribute", folder, wrong, data, *words[3:], status=2)


def test_preferences_from_the_command_line(run, tmp_path, tokenizer):
    policy, frozen = (
        saved(tmp_path / "policy", model_of("gpt2"), tokenizer),
        saved(tmp_path / "frozen", other_model(), tokenizer),
    )
    data = lines(tmp_path / "pairs.jsonl", PAIRS)
    query = lines(tmp_path / "query.jsonl", [{"prompt": "ab", "completion": "cde"}])
    task = ["--task", "preference"]
    assert "needed 'ref_chosen_logps' and" in run("build", policy, data, *task, "-o", tmp_path / "none", status=2)
    assert "found --beta for --task causal_lm" in run("build", policy, data, "--beta", 0.2, "-o", tmp_path / "none", status=2)
    run("build", policy, data, *task, "--reference", frozen, "--beta", 0.3, "-o", tmp_path / "s", "--method", "logra")
    answer = json.loads(run("query", tmp_path / "s", "--file", query, "-k", 3, "--json"))
    hits = answer["queries"][0]["proponents"]
    assert hits[0]["id"] == "a" and "[rejected] f" in hits[0]["text"]
    # The reference is part of what the store's rows are of: asked again in a second stage, the training data has to be the same.
    table = tmp_path / "t"
    words = ["attribute", policy, data, query, *task, "--reference", frozen, "-o", table, "--method", "ekfac"]
    assert json.loads(run(*words))["train"] == 3


def test_the_page_runs(reader):
    assert run_blocks("docs/tasks.md", 1)["table"].train_ids == ("polite", "short")
