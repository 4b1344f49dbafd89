"""IF-Guide: token scores against one backward pass per token, the selection against loops, the objective in a loop and in the Trainer."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import whence
from tests import zoo
from tests.pages import ROOT, page_commands, run_blocks
from tests.reference import guide as slow
from tests.reference.ekfac import dense_inverse
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.settings import keywords_of
from whence.capture import plan_units
from whence.cli import main
from whence.curvature import fit_ekfac
from whence.data import Dataset
from whence.errors import BadInput, NonFinite, StoreCorrupt, StoreMismatch, Unsupported
from whence.guide.choose_tokens import rank_examples, upper_quantile
from whence.guide.token_scores import TokenScores
from whence.load import load_task
from whence.settings import FitConfig
from whence.store import write_tensors

BATCH = 40


def case(name="gpt2", queries=4, count=12):
    task, dataset = zoo.make(name, count=count)
    examples = list(dataset.examples)
    half = queries // 2
    return task, Dataset(examples[queries:]), Dataset(examples[:half]), Dataset(examples[half:queries])


def scores_of(task, train, harmful, safe, folder, **options):
    options = {"relative_damping": 0.1, "batch_positions": BATCH, **options}
    return whence.guide.contrast_scores(task, train, harmful, safe, folder, **keywords_of(**options))


def as_files(folder, rows, cut=2):
    """Token scores as they lie on disk, some examples to a file."""
    from whence.data import Example

    train = Dataset([Example(f"d{place}", {}, len(row)) for place, row in enumerate(rows)])
    files = []
    for start in range(0, len(rows), cut):
        places = range(start, min(start + cut, len(rows)))
        path = folder / f"tokens-{start}.safetensors"
        write_tensors(path, {"scores": torch.tensor(np.concatenate([rows[place] for place in places]))})
        files.append((path, places))
    return TokenScores(train, tuple(files), "made up", ())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_token_scores_are_those_of_one_backward_pass_per_token(name, tmp_path):
    task, train, harmful, safe = case(name)
    found = list(scores_of(task, train, harmful, safe, tmp_path).examples())
    plan = plan_units(task)
    fit = fit_ekfac(task, plan, train, FitConfig(), max_positions=BATCH, quiet=True)
    sides = [unit_gradients(task, plan, dense_gradients(task, side.examples, "measurement")) for side in (harmful, safe)]
    for example, scores_T in list(zip(train.examples, found, strict=True))[:4]:
        gradients, places = slow.token_gradients(task, plan, example)
        wanted_M = 0
        for block, rows_MF, plus_QOI, minus_QOI in zip(fit.blocks, gradients, *sides, strict=True):
            query_F = plus_QOI.flatten(1).mean(0) - minus_QOI.flatten(1).mean(0)
            wanted_M = wanted_M - rows_MF @ dense_inverse(block, 0.1 * block.mean_eigenvalue) @ query_F / len(train)
        assert len(scores_T) == example.length
        assert scores_T.isfinite().nonzero()[:, 0].tolist() == places
        torch.testing.assert_close(scores_T[places].double(), wanted_M, rtol=1e-5, atol=1e-6 * float(wanted_M.abs().max()))


def test_token_scores_add_up_to_those_of_attribute(tmp_path):
    task, train, harmful, safe = case()
    found = list(scores_of(task, train, harmful, safe, tmp_path).examples())
    queries = Dataset([*harmful.examples, *safe.examples])
    weights = dict.fromkeys(harmful.ids, 0.5) | dict.fromkeys(safe.ids, -0.5)
    table = whence.attribute(
        task,
        train,
        queries,
        groups={"contrast": weights},
        method=whence.EKFAC(damping=whence.Damping(relative=0.1)),
        runtime=whence.Runtime(batch_positions=BATCH, quiet=True),
    )
    sums_N = torch.stack([scores_T.nansum() for scores_T in found]).double()
    torch.testing.assert_close(sums_N, table.scores[0], rtol=1e-5, atol=1e-6 * float(table.scores.abs().max()))


def test_unscored_prompts_have_no_score_and_other_methods_work(tmp_path, model_folder):
    task, _ = load_task(str(model_folder))
    train = [{"prompt": "a cat", "completion": " sat"}, "the dog ran"]
    queries = [{"prompt": "x", "completion": "yz"}], [{"prompt": "x", "completion": "ab"}]
    for method in ("grad-dot-exact", "pcg"):
        options = {} if method == "pcg" else {"relative_damping": None}
        scores = scores_of(task, train, *queries, tmp_path / method, method=method, **options)
        first, second = scores.examples()
        assert first.isnan().tolist() == [True] * 5 + [False] * 4
        assert second.isnan().tolist() == [True] + [False] * 10
    assert any("pcg" in note for note in scores.notes)


def test_a_stopped_run_goes_on_and_files_do_not_show(tmp_path, monkeypatch):
    task, train, harmful, safe = case()
    whole = torch.cat(list(scores_of(task, train, harmful, safe, tmp_path / "whole").examples()))
    monkeypatch.setattr("whence.guide.token_scores._FILE_TOKENS", 12)
    done, file = [], sys.modules["whence.guide.token_scores"]._file

    def stopping(ready, blocks, places, progress):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(places)
        return file(ready, blocks, places, progress)

    monkeypatch.setattr("whence.guide.token_scores._file", stopping)
    with pytest.raises(KeyboardInterrupt):
        scores_of(task, train, harmful, safe, tmp_path / "cut")
    again = []
    monkeypatch.setattr("whence.guide.token_scores._file", lambda ready, *rest: again.append(rest[1]) or file(ready, *rest))
    scores = scores_of(task, train, harmful, safe, tmp_path / "cut")
    assert len(done) == 2 and len(again) == len(scores.files) - 2 and not set(done) & set(again)
    torch.testing.assert_close(torch.cat(list(scores.examples())), whole, equal_nan=True, rtol=1e-5, atol=1e-9)


def test_scores_of_something_else_are_refused(tmp_path):
    task, train, harmful, safe = case()
    scores_of(task, train, harmful, safe, tmp_path)
    with pytest.raises(StoreMismatch, match="found token scores with another dampings in"):
        scores_of(task, train, harmful, safe, tmp_path, relative_damping=0.2)
    with pytest.raises(StoreMismatch, match="found token scores with another contrast"):
        scores_of(task, train, harmful, Dataset(safe.examples[:1]), tmp_path)


def test_tasks_and_methods_without_token_scores_are_refused(tmp_path):
    task, dataset = zoo.make("linear", count=4)
    with pytest.raises(Unsupported, match=r"found a task of kind '\w+'; needed a causal language model"):
        scores_of(task, dataset, dataset, dataset, tmp_path)
    task, train, harmful, safe = case()
    with pytest.raises(BadInput, match="found method='source', which goes back through a recorded run"):
        scores_of(task, train, harmful, safe, tmp_path, method="source", relative_damping=None)


def test_a_score_that_is_no_number_names_its_example(tmp_path, monkeypatch):
    task, train, harmful, safe = case()
    from whence.guide import token_scores

    broken = token_scores._batch

    def infinite(task, plan, examples, blocks):
        found = broken(task, plan, examples, blocks)
        found[0][1] = torch.inf
        return found

    monkeypatch.setattr(token_scores, "_batch", infinite)
    with pytest.raises(NonFinite, match="found a NaN or infinite token score in the example"):
        scores_of(task, train, harmful, safe, tmp_path)


def test_a_model_without_forward_mode_is_refused(tmp_path, monkeypatch):
    task, train, harmful, safe = case()

    def jvp(*args):
        raise NotImplementedError("Trying to use forward AD with flash that does not support it")

    monkeypatch.setattr("whence.guide.token_scores.jvp", jvp)
    with pytest.raises(Unsupported, match="a model that a tangent, which gives all token scores at once, cannot go through"):
        scores_of(task, train, harmful, safe, tmp_path)


@pytest.mark.parametrize("seed", range(6))
def test_selection_equals_the_loops(seed, tmp_path):
    generator = np.random.default_rng(seed)
    rows = [generator.standard_normal(generator.integers(2, 30)) for _ in range(23)]
    for row in rows:
        row[0] = np.nan
        row[generator.random(len(row)) < 0.2] = np.nan
    settings = {"quantile": float(generator.choice([0.5, 0.9, 0.97])), "window": seed % 3, "budget": 0.02 + 0.05 * seed}
    found = whence.guide.select_tokens(as_files(tmp_path, rows), whence.settings.GuideConfig(**settings))
    threshold, ranks, marked = slow.selection(rows, **settings)
    assert found.threshold == threshold
    np.testing.assert_allclose(found.ranking.ranks_N, ranks, atol=1e-12)
    assert list(found.marked.items()) == list(marked.items())
    assert found.scored == sum(int((~np.isnan(row)).sum()) for row in rows)
    assert sum(map(len, found.marked.values())) <= settings["budget"] * found.scored


def planted_rows(documents=200, carriers=6, seed=0):
    """Chance scores of documents of different lengths; the first few have eight tokens in a row of eight times the spread."""
    generator = np.random.default_rng(seed)
    rows = [generator.standard_normal(generator.integers(20, 120)) for _ in range(documents)]
    for row in rows[:carriers]:
        row[5:13] = 8.0 + generator.standard_normal(8)
    for row in rows:
        row[0] = np.nan
    return rows


@pytest.mark.parametrize("floor", [None, "off", 1.2])
def test_selection_with_a_floor_equals_the_loops(floor, tmp_path):
    rows = planted_rows(60)
    settings = {"quantile": 0.9, "window": 1, "budget": 0.08, "floor": floor}
    made = whence.guide.select_tokens(as_files(tmp_path, rows), whence.settings.GuideConfig(**settings))
    _, ranks, marked = slow.selection(rows, **settings)
    assert list(made.marked.items()) == list(marked.items()) and marked
    np.testing.assert_allclose(made.ranking.ranks_N, ranks, atol=1e-12)
    assert made.floor == pytest.approx({None: slow.evidence_floor(rows)[1], "off": 0.0}.get(floor, floor))


def test_marks_stop_where_the_evidence_stops(tmp_path):
    """A behaviour that lives in 6 of 200 documents; the budget of 2 % would go on to many others."""
    rows = planted_rows()
    scores = as_files(tmp_path, rows)
    made = whence.guide.select_tokens(scores)
    assert set(range(6)) <= made.marked.keys() and len(made.marked) <= 8
    planted = {row: set(range(5, 13)) for row in range(6)}
    assert all(planted[row] <= set(made.marked[row]) for row in planted)
    budget = int(0.02 * made.scored)
    assert sum(map(len, made.marked.values())) < budget / 2
    assert (
        f"{len(made.marked)} of 200 documents have evidence above {made.floor:.3g}, the largest that chance would"
        in made.stopped
    )
    assert "budget is left" in made.stopped
    spent = whence.guide.select_tokens(scores, whence.settings.GuideConfig(floor="off"))
    assert sum(map(len, spent.marked.values())) == budget and len(spent.marked) > 30
    assert "the budget of 2.00% of the tokens is spent; no floor was set" in spent.stopped
    little = whence.guide.select_tokens(scores, whence.settings.GuideConfig(budget=0.001))
    assert sum(map(len, little.marked.values())) == int(0.001 * made.scored)
    assert "is spent; " in little.stopped and "documents have evidence above" in little.stopped
    few = whence.guide.select_tokens(as_files(tmp_path, rows[:20]))
    assert few.floor == 0 and "no floor: among 20 documents it cannot be told which are chance, 50 are needed" in few.stopped


def test_a_behaviour_of_a_fifth_of_the_documents_does_not_raise_the_floor(tmp_path):
    rows = planted_rows(400, carriers=80)
    few = whence.guide.select_tokens(as_files(tmp_path, planted_rows(400, carriers=4)))
    made = whence.guide.select_tokens(as_files(tmp_path, rows), whence.settings.GuideConfig(quantile=0.95, budget=0.2))
    assert made.floor < 1.2 * few.floor and set(range(80)) <= made.marked.keys() and len(made.marked) <= 84


def test_where_no_document_is_more_than_chance_nothing_is_marked(tmp_path):
    rows = planted_rows(carriers=0)
    made = whence.guide.select_tokens(as_files(tmp_path, rows), whence.settings.GuideConfig(floor=9.0))
    assert made.marked == {} and "0 of 200 documents have evidence above 9, the floor that was set" in made.stopped
    chance = whence.guide.select_tokens(as_files(tmp_path, rows))
    assert len(chance.marked) <= 2


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 0.9, 0.99, 0.999])
def test_the_quantile_is_exact_however_values_are_cut(quantile):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values[:300] = values[300:600]  # ties
    wanted = np.quantile(values, quantile, method="inverted_cdf")
    for size in (1, 7, 1000):
        assert upper_quantile(values.split(size), quantile, 1000) == wanted


def test_ranks_need_many_tokens_and_strong_ones():
    scores = [torch.tensor([9.0, 0, 0]), torch.tensor([2.0, 2.0, 2.0]), torch.tensor([3.0, 3.0, 2.5]), torch.zeros(3)]
    ranks_N = rank_examples(scores, 1.0).ranks_N
    assert int(ranks_N.argmax()) == 2 and float(ranks_N[3]) == 0
    torch.testing.assert_close(ranks_N[2], torch.tensor(2 * 8.5 / 9 / (1 + 8.5 / 9)).double())
    assert rank_examples([torch.ones(2), torch.ones(2)], 0.0).ranks_N.tolist() == [1, 1]


def test_settings_out_of_range_and_tiny_budgets_are_refused(tmp_path):
    for floor in (0.0, -1.0, float("inf"), "auto"):
        with pytest.raises(BadInput, match="found floor=.*; needed a (finite )?number"):
            whence.settings.GuideConfig(floor=floor)
    for wrong in ({"quantile": 1.0}, {"window": -1}, {"budget": 0.0}, {"budget": 1.5}):
        with pytest.raises(BadInput, match="needed a quantile from 0 to below 1, a window of 0 or more tokens"):
            whence.settings.GuideConfig(**wrong)
    with pytest.raises(BadInput, match="found a budget of 0.1 of 5 scored tokens; needed room for one token"):
        whence.guide.select_tokens(as_files(tmp_path, [np.arange(5.0)]), whence.settings.GuideConfig(budget=0.1))


def test_copies_of_one_document_are_not_passed_over_in_silence(tmp_path):
    with pytest.raises(BadInput, match="found no token above the quantile 0.9, since several share the highest score"):
        whence.guide.select_tokens(
            as_files(tmp_path, [np.arange(5.0)] * 4), whence.settings.GuideConfig(quantile=0.9, budget=0.5)
        )


def example_marks():
    from whence.guide.marks import Marked

    return whence.guide.Marks({"b": Marked("b", 3, (1, 2), (7, 8), 1.0, 2, 0.5)}, {"method": "made up"})


def test_marks_survive_their_file_and_land_on_their_tokens(tmp_path):
    marks = example_marks()
    marks.save(tmp_path / "marks.jsonl")
    assert whence.guide.open_marks(tmp_path / "marks.jsonl") == marks and len(marks) == 2
    ids = torch.tensor([[1, 2, 3, 4], [6, 7, 8, 0]])
    assert marks.rows(["a", "b"], ids).tolist() == [[False] * 4, [False, True, True, False]]
    assert marks.rows(["b"], torch.tensor([[0, 6, 7, 8]]), padding="left").tolist() == [[False, False, True, True]]


def test_marks_on_other_tokens_are_refused(tmp_path):
    marks = example_marks()
    for ids, padding in (
        (torch.tensor([[6, 7, 9]]), "right"),
        (torch.tensor([[6, 7]]), "right"),
        (torch.tensor([[6, 7, 8, 0]]), "left"),
    ):
        with pytest.raises(BadInput, match="found other tokens in the example 'b' than those that were marked"):
            marks.rows(["b"], ids, padding=padding)
    with pytest.raises(BadInput, match="found padding='right' and 2 ids for 1 rows"):
        marks.rows(["a", "b"], torch.tensor([[6]]))


def test_what_is_no_mask_file_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"found no mask file at .*; needed marks\.jsonl"):
        whence.guide.open_marks(tmp_path / "none.jsonl")
    path = tmp_path / "marks.jsonl"
    for text in ("", "{}", "no json", '{"format": "whence marks 1"}\n{"id": "a"}', "[]"):
        path.write_text(text)
        with pytest.raises(StoreCorrupt, match="which is no mask file"):
            whence.guide.open_marks(path)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_objective_equals_the_loop_with_its_gradient(strength):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 6, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(9, (3, 6), generator=generator)
    labels[1, 3:] = -100
    marks = torch.rand(3, 6, generator=generator) < 0.3
    found = whence.guide.suppress_marked(logits, labels, marks, strength=strength)
    wanted = slow.objective(logits, labels, marks, strength)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found, wanted)))
    torch.testing.assert_close(
        whence.guide.suppress_marked(logits, labels, marks, strength=strength, divisor=2) * 2, wanted * 12
    )


def test_the_objective_refuses_what_does_not_fit():
    logits, labels = torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.long)
    marks = torch.zeros(1, 3, dtype=torch.bool)
    with pytest.raises(BadInput, match=r"found logits \(1, 3, 2\), labels \(1, 3\), marks \(1, 2\) of type torch.bool"):
        whence.guide.suppress_marked(logits, labels, marks[:, 1:])
    with pytest.raises(BadInput, match="found strength=-1; needed 0 or more"):
        whence.guide.suppress_marked(logits, labels, marks, strength=-1)
    with pytest.raises(BadInput, match="found a batch without a scored token"):
        whence.guide.suppress_marked(logits, labels.fill_(-100), marks)


@pytest.fixture
def trained(tmp_path, model_folder):
    """Makes a Trainer on four texts, two of them marked, and the same examples and marks for a loop."""
    transformers = pytest.importorskip("transformers")
    from whence.guide.marks import Marked

    def make(**arguments):
        task, _ = load_task(str(model_folder))
        dataset = task.prepare(
            [{"id": f"t{n}", "text": text} for n, text in enumerate(["a cat sat", "dog", "birds fly", "ants"])]
        )
        marks = {}
        for name, places in (("t0", (2, 3, 4)), ("t2", (1,))):
            example = dataset.examples[dataset.ids.index(name)]
            tokens = tuple(int(example.fields["input_ids"][place]) for place in places)
            marks[name] = Marked(name, example.length, places, tokens, 1.0, 1, 1.0)
        data = [{"id": e.id, "input_ids": e.fields["input_ids"].tolist()} for e in dataset.examples]
        tokenizer = task.tokenizer
        tokenizer.pad_token = tokenizer.eos_token
        settings = transformers.TrainingArguments(
            tmp_path / "out", num_train_epochs=2, learning_rate=0.1, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0,
            report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, seed=0,
            **{"per_device_train_batch_size": 4, **arguments},
        )  # fmt: skip
        collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
        trainer = transformers.Trainer(task.model, settings, train_dataset=data, eval_dataset=data, data_collator=collator)
        return trainer, task, dataset, whence.guide.Marks(marks)

    return make


def weights_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("arguments", [{}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}])
def test_the_trainer_takes_the_steps_of_a_loop(trained, arguments):
    trainer, *_, marks = trained(**arguments)
    whence.guide.suppress_in_trainer(trainer, marks)
    loss, divisors = trainer.compute_loss, []

    def watched(model, inputs, return_outputs=False, num_items_in_batch=None):
        # Whether the first tokens of texts count depends on the version of the Trainer: its divisor is taken as it is.
        divisors.append(num_items_in_batch)
        return loss(model.eval(), inputs, return_outputs, num_items_in_batch)

    trainer.compute_loss = watched
    trainer.train()
    _, task, dataset, _ = trained()
    model, batch = task.model.eval(), task.collate(dataset.examples)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        rows = marks.rows(dataset.ids, batch["input_ids"])
        whence.guide.suppress_marked(logits, batch["labels"], rows, divisor=divisors[0]).backward()
        optimizer.step()
    torch.testing.assert_close(weights_of(trainer.model), weights_of(model), rtol=1e-4, atol=1e-6)


def test_without_marks_the_trainer_trains_as_ever(trained):
    ordinary, *_ = trained()
    ordinary.train()
    trainer, *_ = trained()
    whence.guide.suppress_in_trainer(trainer, whence.guide.Marks({}))
    trainer.train()
    torch.testing.assert_close(weights_of(trainer.model), weights_of(ordinary.model), rtol=1e-5, atol=1e-7)


def test_the_trainers_evaluation_stays_as_it_is(trained):
    trainer, *_, marks = trained()
    before = trainer.evaluate()["eval_loss"]
    whence.guide.suppress_in_trainer(trainer, marks)
    trainer.get_train_dataloader()
    assert trainer.evaluate()["eval_loss"] == before


def test_a_trainer_with_a_loss_or_data_of_its_own_is_refused(trained):
    trainer, *_, marks = trained(label_smoothing_factor=0.1)
    with pytest.raises(Unsupported, match="found a Trainer with label smoothing or a compute_loss_func"):
        whence.guide.suppress_in_trainer(trainer, marks)
    trainer, *_ = trained()
    trainer.train_dataset = None
    with pytest.raises(BadInput, match="found a Trainer without training data"):
        whence.guide.suppress_in_trainer(trainer, marks)
    trainer, *_ = trained()
    whence.guide.suppress_in_trainer(trainer, marks, id_field="name")
    with pytest.raises(BadInput, match="found a training example with the fields id, input_ids; needed its id in 'name'"):
        next(iter(trainer.get_train_dataloader()))


@pytest.fixture
def question_files(tmp_path):
    found = []
    for name, completion in (("harmful", "ran off"), ("safe", "sat")):
        found.append(tmp_path / f"{name}.jsonl")
        found[-1].write_text(json.dumps({"prompt": "the dog ", "completion": completion}) + "\n")
    return [str(path) for path in found]


def test_the_verb_writes_marks_and_a_page(tmp_path, model_folder, data_file, question_files, capsys):
    harmful, safe = question_files
    command = ["guide", str(model_folder), str(data_file), "--harmful", harmful, "--safe", safe, "-o", str(tmp_path / "out")]
    assert main([*command, "--quantile", "0.9", "--budget", "0.1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    marks = whence.guide.open_marks(said["marks"])
    assert said["marked_tokens"] == len(marks) == int(0.1 * said["scored_tokens"]) and said["examples"] == 12
    page = Path(said["report"]).read_text()
    assert "Which training tokens does the behaviour come from?" in page and '<mark class="n5">' in page
    first = next(iter(marks.examples.values()))
    assert page.count('<mark class="n5">') >= len(first.positions) and first.id in page
    assert main([*command, "--budget", "0.1", "--quantile", "0.9"]) == 0
    out, err = capsys.readouterr()
    assert "tokens marked, in" in out and "marked" not in err
    assert "note: damping 0.1 x mean eigenvalue" in out and any("damping" in note for note in said["notes"])
    assert "why no more: the budget of 10.00% of the tokens is spent; no floor: among 12 documents" in out
    assert "The budget of 10.00% of the tokens is spent" in page and said["stopped"] == marks.about["stopped"]
    assert main([*command, "--quantile", "0.9", "--floor", "1e9", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["marked_tokens"] == 0 and len(whence.guide.open_marks(said["marks"])) == 0
    assert "Marked are 0 of" in Path(said["report"]).read_text()


def test_the_verbs_mistakes_are_one_line(tmp_path, model_folder, data_file, question_files, capsys):
    harmful, safe = question_files
    command = ["guide", str(model_folder), str(data_file), "-o", str(tmp_path / "out"), "--harmful", harmful]
    assert main([*command, "--safe", harmful]) == 2
    assert "as both --harmful and --safe; needed two sets that differ in the behaviour" in capsys.readouterr().err
    assert main([*command, "--safe", safe, "--budget", "2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*command, "--safe", safe, "--method", "source"]) == 2
    assert "needed a method of the final weights" in capsys.readouterr().err


def test_the_pages_blocks_and_command_run(run, reader, question_files):
    (words,) = page_commands("docs/if-guide.md", 1)
    run(*words)
    names = run_blocks("docs/if-guide.md", 3)
    assert len(names["marks"]) == int(0.01 * names["marks"].about["scored_tokens"])


@pytest.mark.slow
def test_the_example_finds_what_was_planted_and_trains_without_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "if-guide"))
    result = importlib.import_module("run").experiment(tmp_path, documents=800, epochs=4, seeds=1)
    assert result["found"]["the model"]["precision"] >= 0.9
    assert result["found"]["chance"]["precision"] < 0.1
    rows = {name: row for name, (row,) in result["trained"].items()}
    plain, guided = rows["no intervention"], rows["tokens suppressed, strength 0.5"]
    assert guided["rude"] < plain["rude"] / 3 and guided["nats"] > 3 * plain["nats"]
    assert guided["perplexity"] < 1.05 * plain["perplexity"]
    more, tuned = rows["fine-tuned on everything"], rows["fine-tuned with tokens suppressed"]
    assert tuned["rude"] < more["rude"] / 3 and tuned["perplexity"] < 1.05 * more["perplexity"]
