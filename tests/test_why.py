"""Why did it say this: every pair's part is what autograd says, all sums are exact, and nothing asked for is ignored."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import whence
from tests import zoo
from tests.pages import page_commands, run_blocks, run_example
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.reference.token_map import label_parts
from tests.settings import QUIET
from tests.test_lm_records import CHATML, bytes_task
from whence.capture import plan_units
from whence.data import Dataset
from whence.errors import BadInput, Unsupported
from whence.report import Hit, Hits
from whence.score import RELATIVE, by_label
from whence.settings import Shortlist, Writing
from whence.why import DocumentParts, Why, candidates
from whence.why.question import question

DOCUMENTS = ["a cat sat on a mat", "the dog ran off", "é cat", "one bird sleeps", "cats and dogs", "what is it"]
TRAIN = [{"id": f"d{number}", "source": "book", "text": text} for number, text in enumerate(DOCUMENTS)]
PROMPT, COMPLETION = "a cat ", "sat é"


@pytest.fixture(scope="module")
def task():
    return bytes_task(length=48)


def ask(task, prompt=PROMPT, completion=COMPLETION, **options):
    return whence.why.why(task, prompt, completion, **{"train": TRAIN, "k": 6, "runtime": QUIET, **options})


def found_in(why):
    return {hit.id: hit for hit in (*why.hits.proponents[0], *why.hits.opponents[0])}


def assert_near(actual, expected, rel=1e-10):
    """Equal up to a share of the largest number: sums of parts with both signs lose digits."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rel * np.abs(expected).max())


# The parts


@pytest.mark.parametrize("name", ["gpt2", "llama", "bytes"])
def test_every_pair_is_what_autograd_says(name):
    """The heat map of inner products, from a gradient per completion token and a weight moved at one position at a time."""
    if name == "bytes":
        task = bytes_task(length=48)
        data = task.prepare(TRAIN)
    else:
        model, data = zoo.make(name)
        task = whence.CausalLM(model.model, bytes_task().tokenizer)
    plan = plan_units(task)
    whole = data.examples[-1]
    labels = whole.fields["labels"]
    places = [t for t in range(1, len(labels)) if labels[t] != -100][:4]
    queries = [one_label(whole, place) for place in places]
    ready = candidates.FromData.prepare(
        task,
        data,
        type("Asked", (), {"all_tokens": places, "whole": whole}),
        whence.settings.GradDot(),
        whence.Runtime(quiet=True),
    )
    maps, units_UQK = candidates.split_up(task, ready, queries, [1, 2], quiet=True)
    gradients = unit_gradients(task, plan, dense_gradients(task, queries, "measurement"))
    blocks = [-gradient / len(data) for gradient in gradients]
    for place, row in enumerate([1, 2]):
        fields = data.examples[row].fields
        wanted_QT = label_parts(task, plan, blocks, fields["input_ids"].tolist(), fields["labels"].tolist())
        assert_near(maps[place], wanted_QT, 1e-7)
        assert float(wanted_QT[:, 0].abs().max()) == 0 and float(wanted_QT[:, 1:].abs().max()) > 0
        assert_near(units_UQK[:, :, place].sum(0), wanted_QT.sum(1), 1e-7)  # Llama's norm goes through float32


def one_label(example, place):
    labels = np.full_like(example.fields["labels"], -100)
    labels[place] = example.fields["labels"][place]
    return type(example)(f"q{place}", {**example.fields, "labels": labels}, example.length)


@pytest.mark.parametrize("method", ["ekfac", "kfac", "grad-dot-exact"])
def test_all_sums_are_exact(task, method):
    found = ask(task, method=method)
    query = {"prompt": PROMPT, "completion": COMPLETION}
    table = whence.attribute(task, TRAIN, [query], method=method, per_unit=True, tokens_of=["d0", "d2"], runtime=QUIET)
    wanted = dict(zip(table.train_ids, table.scores[0].tolist(), strict=True))
    hits = found_in(found)
    assert set(hits) == set(wanted) and found.hits.unit == (
        RELATIVE if any("sizes are relative" in note for note in found.hits.notes) else table.unit
    )
    up = [hit.id for hit in found.hits.proponents[0]]
    assert up == sorted(up, key=lambda name: -wanted[name]) and all(wanted[name] > 0 for name in up)
    ids = task.prepare([query]).examples[0].fields
    for name, hit in hits.items():
        parts = found.parts[name]
        assert hit.score == pytest.approx(wanted[name], rel=1e-9)
        assert_near(parts.scores_AT.sum(), hit.score)
        assert_near(parts.scores_AT.sum(0), hit.token_scores)
        assert sum(parts.layers.values()) == pytest.approx(hit.score, rel=1e-9)
        for unit, part in parts.layers.items():
            column = table.train_ids.index(name)
            assert part == pytest.approx(table.parts[unit][0, column].item(), rel=1e-7, abs=1e-13)
    for name in ("d0", "d2"):
        assert_near(hits[name].token_scores, by_label(table.tokens[name])[0])
    for row, number in enumerate(found.asked):  # one completion token, asked as a record with one label
        place = len(ids["labels"]) - len(found.completion) + number - 1
        labels = [-100] * place + [int(ids["labels"][place])] + [-100] * (len(ids["labels"]) - place - 1)
        alone = whence.attribute(
            task, TRAIN, [{"input_ids": ids["input_ids"].tolist(), "labels": labels}], method=method, runtime=QUIET
        )
        for column, name in enumerate(alone.train_ids):
            assert float(found.parts[name].scores_AT[row].sum()) == pytest.approx(
                alone.scores[0, column].item(), rel=1e-7, abs=1e-12
            )
    assert found.hits.measurements[0] == pytest.approx(sum(found.log_probabilities))
    # é is two tokens, the second without characters of its own.
    assert "".join(found.completion) == COMPLETION and len(found.completion) == 6


def test_one_token_is_a_row_of_the_whole(task):
    whole, third = ask(task), ask(task, token=3)
    assert third.asked == (3,) and third.asked_tokens == ("t",) and third.completion == whole.completion
    assert third.hits.measurements[0] == whole.log_probabilities[2]
    scores = {name: float(parts.scores_AT[2].sum()) for name, parts in whole.parts.items()}
    for name, hit in found_in(third).items():
        assert hit.score == pytest.approx(scores[name], rel=1e-9)
        assert_near(third.parts[name].scores_AT, whole.parts[name].scores_AT[2:3])
    up = [hit.id for hit in third.hits.proponents[0]]
    assert up == sorted((name for name in scores if scores[name] > 0), key=lambda name: -scores[name])


@pytest.mark.parametrize("at_once", [1, 4])
def test_some_completion_tokens_at_a_time_are_the_same(task, monkeypatch, at_once):
    whole = ask(task)
    monkeypatch.setattr(candidates.FromData, "at_once", at_once)
    for name, parts in ask(task).parts.items():
        assert_near(parts.scores_AT, whole.parts[name].scores_AT)
        assert_near(list(parts.layers.values()), list(whole.parts[name].layers.values()))


def test_a_store_and_the_data_agree(task, tmp_path):
    store = whence.build(
        task, TRAIN, tmp_path / "s", config=whence.BuildConfig(method="aligned", rank=3, dtype="int1"), runtime=QUIET
    )
    for options in ({}, {"token": 2}):
        direct, stored = ask(task, **options), ask(task, method=Shortlist(store=tmp_path / "s"), **options)
        assert stored.hits.method == "aligned, then exact EK-FAC" and found_in(direct).keys() == found_in(stored).keys()
        for name, hit in found_in(direct).items():
            other = found_in(stored)[name]
            assert (other.score, other.token_scores) == (
                pytest.approx(hit.score, rel=1e-6),
                pytest.approx(hit.token_scores, rel=1e-6, abs=1e-9),
            )
            assert_near(stored.parts[name].scores_AT, direct.parts[name].scores_AT, 1e-5)
            assert list(stored.parts[name].layers) == list(direct.parts[name].layers)
    few = ask(task, method=Shortlist(store=store, rows=1), k=1)
    assert "the strongest 1 of each side" in few.hits.notes[-1]


def test_label_parts_keep_their_sum():
    parts = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts[:, -1] = 0.5
    moved = by_label(parts)
    assert_near(moved.sum(1), parts.sum(1))
    assert bool((moved[:, 0] == 0).all())
    assert_near(moved[:, 1:] - parts[:, :-1], np.full((3, 6), 0.5 / 6))


def test_documents_without_text_are_read_from_their_tokens(task):
    ids = [task.tokenizer(text)["input_ids"] for text in DOCUMENTS]
    pack = {
        "id": "pack", "input_ids": [t for one in ids for t in one], "position_ids": [p for one in ids for p in range(len(one))],
    }  # fmt: skip
    # Labels of the curvature are drawn by id, and these have others.
    packed, plain = ask(task, train=[pack], method="grad-dot-exact"), ask(task, method="grad-dot-exact")
    for number, text in enumerate(DOCUMENTS):
        hit, other = found_in(packed)[f"pack:{number}"], found_in(plain)[f"d{number}"]
        assert hit.score == pytest.approx(other.score, rel=1e-9) and len(hit.token_spans) == len(ids[number])
        if text.isascii():
            assert hit.text == text


# The question


def test_the_model_writes_what_generate_writes(task):
    torch.manual_seed(0)
    written = question(task, PROMPT, Writing(max_new_tokens=9))
    ids = torch.tensor([task.tokenizer(PROMPT)["input_ids"]])
    wanted = task.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False)[0].tolist()
    got = written.whole.fields["input_ids"].tolist()
    assert got == wanted[: len(got)] and len(got) in (len(wanted), ids.shape[1] + 9)
    assert written.whole.text == PROMPT + "".join(written.tokens) and len(written.tokens) == len(got) - ids.shape[1]
    logits = task.model(torch.tensor([got])).logits[0].log_softmax(-1).detach()
    assert written.log_probabilities == pytest.approx([float(logits[t - 1, got[t]]) for t in range(ids.shape[1], len(got))])


def test_sampling_follows_its_seed_and_ends_at_the_end_mark(task, monkeypatch):
    options = {"max_new_tokens": 12, "temperature": 3.0}
    state = torch.random.get_rng_state()
    same = [question(task, PROMPT, Writing(seed=seed, **options)).tokens for seed in (1, 1, 0, 0, 2)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert same[0] == same[1] and same[2] == same[3] and same[0] != same[2] != same[4]
    first = question(task, PROMPT, Writing(seed=1, **options))
    mark = first.whole.fields["input_ids"][first.positions[5]]
    before = next(i for i, place in enumerate(first.positions) if first.whole.fields["input_ids"][place] == mark)
    monkeypatch.setattr(task.model.generation_config, "eos_token_id", [int(mark), 0])
    if before:
        cut = question(task, PROMPT, Writing(seed=1, **options)).whole.fields["input_ids"]
        assert cut.tolist() == first.whole.fields["input_ids"][: len(cut)].tolist() and len(cut) == first.positions[0] + before
    monkeypatch.setattr(task.model.generation_config, "eos_token_id", int(first.whole.fields["input_ids"][first.positions[0]]))
    with pytest.raises(BadInput, match="found a prompt after which the model ends at once; needed something to explain"):
        question(task, PROMPT, Writing(seed=1, **options))
    long = question(task, "x" * 40, Writing(max_new_tokens=30, temperature=3.0))
    assert long.whole.length <= 48


def test_a_conversation_goes_through_the_template():
    task = bytes_task(CHATML)
    messages = [{"role": "user", "content": "Hi"}]
    asked = question(task, messages, "Yo")
    assert asked.prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n" and asked.tokens == ("Y", "o")
    assert asked.whole.text == asked.prompt + "Yo"
    with pytest.raises(BadInput, match="found the prompt with messages for a tokenizer without a chat template"):
        question(bytes_task(), messages, "Yo")


def test_without_a_prompt_the_first_token_is_given(task):
    found = ask(task, "", "cat")
    assert found.completion == ("a", "t") and found.prompt == ""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"k": 0}, "found k=0; needed 1 or more"),
        ({"token": 0}, r"found token 0 of a completion of 6; needed 1 to 6: 1 's', 2 'a', 3 't', 4 ' '"),
        ({"token": 7}, "found token 7 of a completion of 6"),
        ({"completion": Writing(), "prompt": ""}, "found a prompt of 0 tokens to be completed; needed 1 to 47"),
        ({"prompt": "x" * 60}, "found a prompt and completion of 66 tokens; needed at most 48, the model's context"),
        (
            {"method": "pcg"},
            "found method='pcg' to explain a completion token by token; needed a method whose inverse is a formula",
        ),
        (
            {"method": Shortlist(store="s"), "runtime": whence.Runtime(memory_gib=1.0)},
            "found memory_gib with a shortlist of a store, whose curvature is inside it; needed settings of the road",
        ),
    ],
)
def test_what_has_no_use_is_refused(task, options, text):
    with pytest.raises(BadInput, match=text):
        ask(task, **options)


def test_only_language_models_with_tokenizers_speak():
    for task, text in (
        (zoo.make("linear")[0], "found a Custom|a Classification task;"),
        (zoo.make("gpt2")[0], "CausalLM task without a tok"),
    ):
        with pytest.raises(
            Unsupported, match=f"{text}.*needed a causal language model with its tokenizer" if "without" in text else "needed"
        ):
            whence.why.why(task, "a", "b", train=TRAIN)


def test_a_store_of_another_method_is_refused(task, tmp_path):
    store = whence.build(task, TRAIN, tmp_path / "s", config=whence.BuildConfig(method="logra", rank=4), runtime=QUIET)
    with pytest.raises(BadInput, match="found a store of logra in .*; needed one of aligned, which holds the EK-FAC"):
        ask(task, method=Shortlist(store=store))


# What people see


def a_why():
    """One document for a completion of two tokens; hostile words everywhere."""
    text = "<script>x</script> tail"
    spans = ((0, 8), (8, 18), (18, 23))
    scores = torch.tensor([[0.0, 1.0, -0.5], [0.25, 2.0, 0.01]], dtype=torch.float64)
    hit = Hit("<b>id", 0, 2.76, "<i>src", text, None, spans, tuple(scores.sum(0).tolist()))
    hits = Hits(("p<q",), ((hit,),), ((),), (-3.0,), "nats", "ekfac", 9, ("<u>note",), "nats")
    parts = DocumentParts(scores, tuple(text[a:b] for a, b in spans), {"<s>layer": 2.0, "other": 0.76})
    return Why("p<q ", (" <y>", "\n"), (-1.0, -2.0), (1, 2), hits, {"<b>id": parts})


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("input", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.open[-3:])


def test_the_page_runs_nothing_and_can_be_walked_with_keys(tmp_path):
    found = a_why()
    path = found.page(tmp_path / "why.html", intro="two <docs>")
    text = path.read_text("utf-8")
    tags = Tags(text)
    assert tags.open == [] and "script" not in [tag for tag, _ in tags.found]
    for word in ("<script", "<b>id", "<i>src", "<u>note", "<s>layer", "<y>"):
        assert word not in text
    radios = [attrs for tag, attrs in tags.found if tag == "input"]
    assert [one["type"] for one in radios] == ["radio"] * 3 and len({one["name"] for one in radios}) == 1
    labels = [attrs["for"] for tag, attrs in tags.found if tag == "label"]
    assert labels == [one["id"] for one in radios] and ["checked" in one for one in radios] == [True, False, False]
    assert sum(tag == "rect" for tag, _ in tags.found) == 4  # 0 and .01 of 2 are too faint to draw
    scrolls = [attrs for _, attrs in tags.found if attrs.get("class") == "scroll"]
    assert scrolls[0]["tabindex"] == "0" and scrolls[0]["aria-label"] == "heat map"
    assert "that of the position where the model had to predict it" in text and "prefers-color-scheme: dark" in text


def test_the_page_of_one_token_says_so():
    found = a_why()
    parts = found.parts["<b>id"]
    one = replace(found, asked=(2,), parts={"<b>id": replace(parts, scores_AT=parts.scores_AT[1:])})
    text = one._repr_html_()
    assert "Measurement of token 2 alone" in text and "Part of token 2 alone" in text and "whole completion" not in text
    assert text.count('type="radio"') == 1


def test_json_holds_every_part():
    found = json.loads(json.dumps(a_why().to_dict()))
    (document,) = found["proponents"]
    assert np.asarray(document["map"]).sum() == pytest.approx(document["score"]) and document["layers"]["other"] == 0.76
    assert [one["score"] for one in document["tokens"]] == pytest.approx(np.asarray(document["map"]).sum(0).tolist())
    assert found["completion"][1] == {"number": 2, "text": "\n", "log_probability": -2.0} and found["asked"] == [1, 2]
    assert "flows through that position" in found["token_definition"] and found["opponents"] == []


def test_the_terminal_shows_tokens_pairs_and_layers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    a_why().show(layers=True)
    shown = capsys.readouterr().out
    for word in ("+2.760", "<b>id", "layer: <s>layer +2", "+2", "--token NUMBER", "1‹ <y>› -1.0"):
        assert word in shown, word
    assert re.search(r"‹\\n› ‹x</script>› \+2", shown)


def test_from_the_command_line(run, tmp_path, model_folder, data_file):
    run("build", model_folder, data_file, "-o", tmp_path / "s")
    words = ["--prompt", "a cat ", "--completion", "sat", "--json"]
    stored = json.loads(run("why", tmp_path / "s", *words, "-k", 3))
    searched = ["--model", model_folder, "--train", data_file, "--html", tmp_path / "p.html"]
    direct = json.loads(run("why", *searched, *words, "-k", 3))
    assert [one["text"] for one in stored["completion"]] == ["s", "a", "t"] and (tmp_path / "p.html").exists()
    for side in ("proponents", "opponents"):
        assert [hit["id"] for hit in stored[side]] == [hit["id"] for hit in direct[side]]
        for hit, other in zip(stored[side], direct[side], strict=True):
            assert hit["score"] == pytest.approx(other["score"], rel=5e-3)
            assert np.asarray(hit["map"]).sum() == pytest.approx(hit["score"], rel=1e-4)
    one = json.loads(run("why", tmp_path / "s", *words, "--token", 2))
    assert one["asked"] == [2]
    assert "searched  12 examples" in run("why", tmp_path / "s", "--prompt", "a", "--temperature", 2, "--max-new-tokens", 3)
    run("build", model_folder, data_file, "-o", tmp_path / "other", "--method", "logra")
    for arguments, text in (
        (["--prompt", "a"], "found no store; needed where to look"),
        (["--prompt", "a", "--model", model_folder], "found no store and no --train; needed where to look"),
        (
            [tmp_path / "s", "--prompt", "a", "--long", "split"],
            "found --long with a store; needed what the store was built with",
        ),
        ([tmp_path / "s", "--prompt", "a", "--split", "test"], "found --split with a store"),
        ([tmp_path / "s", "--prompt", "a", "--chat"], "found the prompt with messages for a tokenizer without a chat template"),
        ([tmp_path / "s", *words[:4], "--token", 9], "found token 9 of a completion of 3"),
        ([tmp_path / "nope", "--prompt", "a"], "found no store at"),
        ([tmp_path / "other", "--prompt", "a"], "found a store of logra in"),
    ):
        error = run("why", *arguments, status=2).strip().splitlines()[-1]
        assert error.startswith("whence: ") and text in error


def test_the_task_is_left_as_it_was(task):
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    data = Dataset(task.prepare(TRAIN).examples)
    ask(task, train=data, completion=Writing(max_new_tokens=2))
    assert all(torch.equal(before[name], value) for name, value in task.model.state_dict().items())


def test_the_page_in_docs_is_true(run, reader):
    """Its Python and its commands are run as they stand, with the tiny model where the reader's own would be."""
    run_blocks("docs/why.md", 1)
    assert (reader / "why.html").exists()
    run("build", "path/to/model", "train.jsonl", "-o", "store")
    for words in page_commands("docs/why.md", 4):
        # The tiny model reads 32 bytes.
        shown = run(*(word.replace("The capital of France is", "A capital is") for word in words))
        assert "strongest pairs" in shown


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    """A small GPT-2 on real text: what it writes is explained by parts that add up."""
    out = run_example("why/run.py", tmp_path, "--documents", "200")
    found = json.loads(out.splitlines()[-1])
    assert found["wrote"] and len(found["top"]) == 5 and max(found["off"]) < 1e-3
    assert (tmp_path / "greedy.html").exists() and (tmp_path / "token.html").exists()


def language_model(kind):
    """A small model of a family, in float64, with its task."""
    import transformers

    torch.manual_seed(0)
    small = {
        "vocab_size": 257,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 48,
    }
    if kind == "gpt2":
        return bytes_task(length=48)
    if kind == "llama with groups":
        config = transformers.LlamaConfig(**small, num_key_value_heads=1, intermediate_size=12, head_dim=6, attention_bias=True)
        model = transformers.LlamaForCausalLM(config)
    elif kind == "opt":
        sizes = {"hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = transformers.OPTForCausalLM(
            transformers.OPTConfig(vocab_size=257, max_position_embeddings=48, dropout=0.0, **sizes)
        )
    else:
        model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**small, intermediate_size=12))
    return whence.CausalLM(model.double(), bytes_task().tokenizer, ignore=["*embed_positions*"] if kind == "opt" else ())


# Rows and columns of each head, written out: name of the parameter, rows or columns, first and last.
HEADS = {
    "gpt2": {1: [("attn.c_attn.weight", 0, range(4, 8)), ("attn.c_attn.weight", 0, range(12, 16)), ("attn.c_attn.weight", 0, range(20, 24)),
                 ("attn.c_proj.weight", 1, range(4, 8))]},
    "llama with groups": {1: [("q_proj.weight", 0, range(6, 12)), ("o_proj.weight", 1, range(6, 12))]},
    "opt": {0: [(f"{part}_proj.weight", 0, range(4)) for part in "qkv"] + [("out_proj.weight", 1, range(4))]},
    "gpt_neox": {1: [("query_key_value.weight", 0, range(12, 24)), ("attention.dense.weight", 1, range(4, 8))]},
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
def test_heads_are_their_rows_and_columns(kind):
    task = language_model(kind)
    answer = ask(task, method="grad-dot-exact", k=2)
    plan = plan_units(task)
    data = task.prepare(TRAIN)
    (query,) = task.prepare([{"prompt": PROMPT, "completion": COMPLETION}]).examples
    blocks = unit_gradients(task, plan, dense_gradients(task, [query], "measurement"))
    for name, parts in answer.parts.items():
        example = data.examples[data.ids.index(name)]
        gradients = unit_gradients(task, plan, dense_gradients(task, [example]))
        products = {
            unit.parameters[0]: -(q * g)[0] / len(data) for unit, q, g in zip(plan.units, blocks, gradients, strict=True)
        }
        for head, slices in HEADS[kind].items():
            expected = 0.0
            for ending, axis, numbers in slices:
                product_OI = next(value for parameter, value in products.items() if parameter.endswith(ending))
                expected += float(product_OI.index_select(axis, torch.tensor(numbers)).sum())
            (found,) = [part for label, part in parts.heads.items() if label.endswith(f" head {head}")]
            assert found == pytest.approx(expected, rel=1e-4 if "llama" in kind else 1e-8, abs=1e-12)
        own = [value for parameter, value in products.items() if "attn" in parameter or "attention" in parameter]
        if kind == "gpt2":
            assert sum(parts.heads.values()) == pytest.approx(
                sum(float(value.sum()) for value in own) - bias_behind(products), rel=1e-7
            )
        assert sum(parts.modules.values()) == pytest.approx(sum(parts.layers.values()))
    if kind == "llama with groups":
        assert any("key-value group 0" in label for label in next(iter(answer.parts.values())).heads)


def bias_behind(products):
    (projection,) = [value for parameter, value in products.items() if parameter.endswith("attn.c_proj.weight")]
    return float(projection[:, -1].sum())


def test_heads_are_shown_and_unknown_layouts_have_none(task, capsys, tmp_path):
    answer = ask(task, k=1)
    answer.show(layers=True)
    shown = capsys.readouterr().out
    assert "head: " in shown and "module: " in shown
    page = answer.page(tmp_path / "why.html").read_text("utf-8")
    assert "By attention head" in page and "By module" in page
    assert set(answer.to_dict()["proponents"][0]) >= {"layers", "modules", "heads"}
    from whence.why.heads import heads_of

    assert heads_of(torch.nn.Linear(2, 2), plan_units(task)) == {}
