"""Conversations, masked prompts, packed rows and adapters: each equal to autograd on one example, its loss written out token by token."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import whence
from tests import zoo
from tests.reference.conversations import spoken_loss, turns
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.settings import QUIET
from whence.capture import capture, plan_units
from whence.cli import main
from whence.errors import BadInput, Unsupported
from whence.load import load_task

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>\\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
)
TALKS = [
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hé!"}],
    [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "no answer"}],
]


def bytes_task(template=None, length=256):
    """A float64 GPT-2 over bytes, with a chat template or without."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.conftest import save_tokenizer

    torch.manual_seed(3)
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=257, n_positions=length, bos_token_id=0, eos_token_id=0)
    tokenizer = bytes_task.tokenizer = getattr(bytes_task, "tokenizer", None) or _tokenizer(save_tokenizer)
    tokenizer.chat_template = template
    return whence.CausalLM(GPT2LMHeadModel(config).double().eval(), tokenizer)


def _tokenizer(save):
    import tempfile

    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        return AutoTokenizer.from_pretrained(folder)


def captured(task, examples, objective="loss"):
    """Per-example gradients of one padded batch, per unit, and the objective's values."""
    plan = plan_units(task)
    rows = [torch.zeros(len(examples), unit.outputs, unit.inputs).double() for unit in plan.units]
    batch = task.collate(examples)
    values = capture(
        task, plan, batch, lambda i, pair: rows[i].add_(pair.gradient()), num_examples=len(examples), objective=objective
    )
    return plan, rows, values


def assert_gradients(task, examples, losses):
    """The batch's gradients are those of the given losses, functions of a model, by autograd alone."""
    plan, rows, values = captured(task, examples)
    model = copy.deepcopy(task.model).requires_grad_(True)
    for place, loss in enumerate(losses):
        model.zero_grad()
        value = loss(model)
        value.backward()
        assert values[place].item() == pytest.approx(value.item(), rel=1e-12)
        grads = {name: (torch.zeros_like(p) if p.grad is None else p.grad)[None] for name, p in model.named_parameters()}
        for row, wanted in zip(rows, unit_gradients(task, plan, grads), strict=True):
            torch.testing.assert_close(row[place], wanted[0], rtol=1e-9, atol=1e-12)


# Conversations


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["added", "marked"])
def test_every_turn_of_the_assistant_is_scored_and_nothing_else(template):
    task = bytes_task(template)
    data = task.prepare([{"messages": talk, "id": f"t{i}"} for i, talk in enumerate(TALKS)])
    encode = lambda text: task.tokenizer(text)["input_ids"]  # noqa: E731
    spoken = [turns(talk, encode) for talk in TALKS]
    for example, (ids, is_scored) in zip(data.examples, spoken, strict=True):
        assert example.fields["input_ids"].tolist() == ids
        assert [label != -100 for label in example.fields["labels"].tolist()] == is_scored
    assert_gradients(task, data.examples, [lambda model, one=one: spoken_loss(model, *one) for one in spoken])


def test_a_conversation_keeps_its_turns_in_the_store_and_in_windows(tmp_path, monkeypatch):
    task = bytes_task(CHATML)
    train = [{"messages": talk, "id": f"t{i}"} for i, talk in enumerate(TALKS)]
    data = task.prepare(train)
    store = whence.build(
        task, data, tmp_path / "s", config=whence.BuildConfig(method="logra", rank=4, dtype="float64"), runtime=QUIET
    )
    seen = []
    prepare = task.prepare
    monkeypatch.setattr(task, "prepare", lambda records: seen.append(prepare(records)) or seen[-1])
    hits = whence.query(store, task, first_of(data), k=3, tokens=True, runtime=QUIET)
    found = [hit for side in (*hits.proponents, *hits.opponents) for hit in side]
    assert len(found) == len(seen) == 3 and any(hit.token_scores for hit in found)
    for hit, again in zip(found, seen, strict=True):  # the stored text gives the same tokens and the same turns
        assert np.array_equal(again.examples[0].fields["labels"], data.examples[hit.row].fields["labels"])
    task.long, task.max_length = "split", 40
    parts = [example for example in prepare(train).examples if example.id.startswith("t1#")]
    for part in parts:
        again = prepare([{"text": part.text, "scored_spans": part.scored}]).examples[0]
        assert np.array_equal(again.fields["labels"], part.fields["labels"])
    scored = [label for part in parts for label in part.fields["labels"].tolist() if label != -100]
    assert scored == [label for label in data.examples[1].fields["labels"].tolist() if label != -100]


def first_of(data):
    return type(data)(data.examples[:1])


REWRITES = "{% for m in messages %}{{ loop.length ~ m['content'] }}{% endfor %}"
RAISES = "{{ raise_exception('roles must alternate') }}"


@pytest.mark.parametrize(
    ("template", "record", "text"),
    [
        (
            None,
            {"messages": TALKS[0]},
            "found record 0 with messages for a tokenizer without a chat template, or a slow one; needed",
        ),
        (CHATML, {"messages": "hello"}, "found record 0 with messages that are no conversation; needed a list of mappings"),
        (CHATML, {"messages": []}, "with messages that are no conversation"),
        (CHATML, {"messages": ["a"]}, "with messages that are no conversation"),
        (
            CHATML,
            {"messages": TALKS[0][:1]},
            "found record 0 in which the assistant says nothing; needed a message with the role",
        ),
        (
            CHATML,
            {"messages": TALKS[0], "text": "x"},
            "found record 0 with both 'messages' and 'text'; needed one of the forms",
        ),
        (REWRITES, {"messages": TALKS[1]}, "with a chat template that writes message 2 otherwise once others follow; needed"),
        (RAISES, {"messages": TALKS[1]}, r"found record 0, which the chat template refuses \(roles must alternate\)"),
    ],
)
def test_conversations_that_do_not_say_what_is_scored(template, record, text):
    with pytest.raises(BadInput, match=text):
        bytes_task(template).prepare([record])


# Instructions


def test_a_masked_prompt_has_no_loss_of_its_own():
    task = bytes_task()
    records = [{"prompt": "Say 2: ", "completion": "two"}, {"prompt": "Name a fruit.\n", "completion": "fig é"}]
    data = task.prepare(records)
    losses = []
    for record in records:
        first, second = (task.tokenizer(record[field])["input_ids"] for field in ("prompt", "completion"))
        mask = [False] * len(first) + [True] * len(second)
        losses.append(lambda model, ids=first + second, mask=mask: spoken_loss(model, ids, mask))
    assert_gradients(task, data.examples, losses)


# Packed rows


def test_a_document_in_a_pack_scores_as_the_document_alone(tmp_path):
    task, _ = zoo.make("llama")
    torch.manual_seed(0)
    texts = [torch.randint(30, (length,)).tolist() for length in (5, 9, 3, 1, 7)]
    masked = [-100, -100, *texts[1][2:]]
    labels = [-100, *texts[0][1:], *masked, *(label for ids in texts[2:] for label in (-100, *ids[1:]))]
    pack = {
        "id": "pack",
        "source": "web",
        "input_ids": [token for ids in texts for token in ids] + [0, 0],
        "labels": [*labels, -100, -100],
        "position_ids": [place for ids in texts for place in range(len(ids))] + [0, 0],
        "attention_mask": [1] * len(labels) + [0, 0],
    }
    alone = [{"input_ids": ids, "labels": masked if ids == texts[1] else ids} for ids in texts if len(ids) > 1]
    inside = task.prepare([pack])
    assert inside.ids == ("pack:0", "pack:1", "pack:2", "pack:4") and {one.source for one in inside.examples} == {"web"}
    queries = task.prepare([{"input_ids": [1, 2, 3, 4]}])
    scores = [whence.attribute(task, data, queries, method="grad-dot-exact", runtime=QUIET).scores for data in (inside, alone)]
    torch.testing.assert_close(*scores, rtol=1e-12, atol=0)
    # What a model with attention inside documents does with the pack, by its own mask, has the same gradient in all.
    wanted = dense_gradients(task, inside.examples)
    blocks = _pack_gradients(task, pack)
    for name, rows in wanted.items():
        torch.testing.assert_close(rows.sum(0), blocks[name], rtol=1e-9, atol=1e-12)


def _pack_gradients(task, pack):
    """Of the summed loss of a whole pack under a mask that keeps documents apart."""
    positions = torch.tensor(pack["position_ids"][:-2])
    document = (positions == 0).cumsum(0)
    sees = (document[:, None] == document) & torch.ones(len(positions), len(positions)).tril().bool()
    bias = torch.zeros(sees.shape).double().masked_fill(~sees, torch.finfo(torch.float64).min)
    model = copy.deepcopy(task.model).requires_grad_(True)
    logits = model(
        input_ids=torch.tensor([pack["input_ids"][:-2]]), attention_mask=bias[None, None], position_ids=positions[None]
    ).logits[0]
    nn.functional.cross_entropy(logits[:-1], torch.tensor(pack["labels"][1:-2]), reduction="sum").backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"cu_seq_lens_q": [0, 2, 4]}, "found the packed or padded record 0 without position_ids; needed position_ids that"),
        ({"attention_mask": [1, 1, 2, 2]}, "found the packed or padded record 0 without position_ids"),
        ({"attention_mask": [0, 1, 1, 1]}, "found the packed or padded record 0 without position_ids"),
        ({"position_ids": [0, 1, 2]}, "found record 0 with position_ids that are not one number per token; needed 4 numbers"),
        ({"attention_mask": [[1] * 4] * 4}, "found record 0 with attention_mask that are not one number per token"),
        (
            {"position_ids": [3, 4, 0, 1]},
            "found record 0 with positions or a mask that leave a gap near token 0; needed documents",
        ),
        ({"position_ids": [0, 1, 2, 3], "attention_mask": [1, 0, 1, 1]}, "that leave a gap near token 2"),
        (
            {"position_ids": [0, 1, 0, 1], "labels": [1, 2, 3, 4]},
            "found the packed record 0, in which the first token of document 1 is",
        ),
    ],
)
def test_packs_that_cannot_be_taken_apart(fields, text):
    task, _ = zoo.make("llama")
    with pytest.raises(BadInput, match=text):
        task.prepare([{"input_ids": [1, 2, 3, 4], **fields}])


@pytest.mark.parametrize(
    "change",
    [
        {"input_ids": [2.7, 3, 4]}, {"input_ids": "123"}, {"input_ids": ["1", "2"]}, {"input_ids": [True, 2, 3]}, {"input_ids": {1, 2}},
        {"input_ids": torch.tensor([1.0, 2.0])}, {"input_ids": np.array([[1, 2]])}, {"input_ids": None}, {"input_ids": 3},
        {"labels": [1, 2.5, 3]}, {"labels": "123"}, {"labels": None},
        {"position_ids": [0, 1.5, 2]}, {"position_ids": "012"}, {"attention_mask": [1.0, 1.0, 0.5]}, {"attention_mask": "111"},
    ],
    ids=str,
)  # fmt: skip
def test_tokens_are_never_rounded_or_split(change):
    task, _ = zoo.make("gpt2")
    record = {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "id": "mine"}
    with pytest.raises(BadInput, match=r"record 0 with .*\(id 'mine'\)"):
        task.prepare([{**record, **change}])
    assert len(task.prepare([{**record, "attention_mask": torch.tensor([True, True, False])}])) == 1


def test_tokens_of_a_text_that_the_model_does_not_know():
    task = bytes_task()
    known = task.model.config.vocab_size
    task.tokenizer.add_tokens(["zebra"])
    with pytest.raises(
        BadInput, match=rf"record 1 with the token id {known} \('zebra'\); needed token ids from 0 to {known - 1}"
    ):
        task.prepare(["a cat", "a zebra"])


@pytest.mark.parametrize("spans", [[[0, 1.5]], [["0", "1"]], [[0]], "01", [0, 1], {0: 1}])
def test_scored_spans_are_pairs_of_whole_numbers(spans):
    with pytest.raises(BadInput, match="record 0 with scored_spans that are no pairs of whole numbers"):
        bytes_task().prepare([{"text": "a cat", "scored_spans": spans}])


def test_texts_for_a_task_without_a_tokenizer():
    task, _ = zoo.make("gpt2")
    with pytest.raises(BadInput, match="record 0 with a text for a task without a tokenizer"):
        task.prepare(["a cat"])


def test_padding_and_plain_positions_change_nothing():
    task, _ = zoo.make("llama")
    plain, padded = (
        task.prepare([record]).examples[0]
        for record in (
            {"input_ids": [1, 2, 3]},
            {"input_ids": [1, 2, 3, 9, 9], "attention_mask": [1, 1, 1, 0, 0], "position_ids": [0, 1, 2, 3, 4]},
        )
    )
    assert plain.fields["input_ids"].tolist() == padded.fields["input_ids"].tolist() and plain.length == padded.length == 3


# Adapters


class Lora(nn.Module):
    """W x + B A x, W frozen: by hand, as the paper writes it (Hu et al. 2021, equation 3)."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)

    def forward(self, inputs):
        return self.base(inputs) + self.up(self.down(inputs))


def by_hand():
    task, data = zoo.make("llama", count=8)
    model = task.model.requires_grad_(False)
    torch.manual_seed(1)
    for layer in model.model.layers:
        layer.self_attn.q_proj, layer.mlp.down_proj = Lora(layer.self_attn.q_proj, 2), Lora(layer.mlp.down_proj, 3)
    return whence.CausalLM(model.double(), None), data


def by_peft(name="llama", modules=("q_proj", "down_proj")):
    import peft

    task, data = zoo.make(name, count=8)
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=list(modules), lora_dropout=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how the package turns Conv1D weights
        model = peft.get_peft_model(task.model, config)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:  # zero at the start, which would hide half of the gradients
            nn.init.normal_(parameter, std=0.3)
    return whence.CausalLM(model.double(), None), data


ADAPTED = {"by hand": by_hand, "peft": by_peft, "peft on Conv1D": lambda: by_peft("gpt2", ("c_attn", "c_proj"))}


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_are_what_is_attributed(tmp_path, name):
    task, data = ADAPTED[name]()
    assert all(("lora" in one or "down.w" in one or "up.w" in one) for one in task.tracked) and len(task.tracked) >= 4
    before = copy.deepcopy(task.model.state_dict())
    plan, rows, _ = captured(task, data.examples)
    wanted = unit_gradients(task, plan, dense_gradients(task, data.examples))
    for row, one in zip(rows, wanted, strict=True):
        torch.testing.assert_close(row, one, rtol=1e-9, atol=1e-12)
    asked = unit_gradients(task, plan, dense_gradients(task, data.examples[:3], "measurement"))
    dot = -sum(q.flatten(1) @ g.flatten(1).T for q, g in zip(asked, wanted, strict=True)) / len(data)
    queries = type(data)(data.examples[:3])
    table = whence.attribute(task, data, queries, method="grad-dot-exact", runtime=QUIET)
    torch.testing.assert_close(table.scores, dot, rtol=1e-9, atol=1e-12)
    store = whence.build(
        task, data, tmp_path / "s", config=whence.BuildConfig(method="aligned", dtype="float64"), runtime=QUIET
    )
    two = whence.query(store, task, queries, k=8, rerank=whence.Rerank(train=data), runtime=QUIET)
    exact = whence.attribute(
        task, data, queries, method=whence.EKFAC(damping=whence.Damping(relative=0.1)), runtime=QUIET
    ).scores
    for place in range(3):
        for hit in (*two.proponents[place], *two.opponents[place]):
            assert hit.score == pytest.approx(exact[place, hit.row].item(), rel=1e-6)
    after = task.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_an_adapter_folder_is_a_model(tmp_path, model_folder, data_file, capsys):
    import peft

    base, _ = load_task(str(model_folder))
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False
    )
    adapted = peft.get_peft_model(base.model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(model_folder)
    adapted.save_pretrained(tmp_path / "adapter")
    task, origin = load_task(str(tmp_path / "adapter"))
    assert all("lora_" in name for name in task.tracked) and len(task.tracked) == 2
    assert origin["model"] == str(tmp_path / "adapter")
    assert task.weights != base.weights
    command = ["build", str(tmp_path / "adapter"), str(data_file), "-o", str(tmp_path / "s"), "--method", "aligned"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(["query", str(tmp_path / "s"), "--text", "a cat", "-k", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_examples"] == 12
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(BadInput, match="found an adapter in .* that does not load onto .*; needed an adapter of that model"):
        load_task(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match="adapter_config.json, which does not name the adapter's base model"):
        load_task(str(tmp_path / "adapter"))


def test_an_adapter_without_its_package_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(BadInput, match=r"found no peft package for the adapter in .*pip install 'whence-tda\[lora\]'"):
        load_task(str(tmp_path))


@pytest.mark.parametrize("length", [0, 1, -3])
def test_lengths_that_leave_nothing_to_score_are_refused(length):
    task, _ = zoo.make("llama")
    with pytest.raises(BadInput, match=f"found max_length={length}; needed 2 or more, since the first token is not scored"):
        whence.CausalLM(task.model, None, max_length=length)


def test_adapters_that_add_positions_are_refused():
    import peft

    task, _ = zoo.make("llama")
    model = peft.get_peft_model(task.model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(
        Unsupported, match="found an adapter of the type PromptTuningConfig, which puts vectors before the text"
    ):
        whence.CausalLM(model, None)
