"""Answers in a terminal of 80 columns: no line is longer, and no word is broken."""

import re
from dataclasses import replace

import pytest

from tests.test_why import a_why
from whence.evaluate import Evaluation
from whence.report import Hit, Hits, hits_fragment, page, print_hits, print_table, question_title
from whence.report.html import breakable
from whence.report.passages import peak_of, pieces
from whence.study.result import Study
from whence.why.html import why_fragment

METHODS = ["ekfac, default damping", "aligned rank 256, whitened, then exact EK-FAC of a shortlist", "BM25"]


def words_of(text):
    return re.findall(r"[^\s─]+", text)


def printed(capsys, monkeypatch, columns, show):
    monkeypatch.setenv("COLUMNS", str(columns))
    show()
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
@pytest.mark.parametrize("kind", [Evaluation, Study])
def test_tables_of_many_columns_break_no_word(capsys, monkeypatch, columns, kind):
    keys = 2 if kind is Study else 1
    names = [(f"reading {number}", "facts") for number in range(3)] if keys == 2 else [(method,) for method in METHODS]
    rest = ["0.670", "0.612 to 0.720", "91 %", "0.601", "0.003 [-0.012, 0.021]", "0.98", "16,384", "1234.5"]
    rows = [(*name, *(f"{cell}" for cell in rest[: len(kind.header) - keys])) for name in names]
    shown = printed(capsys, monkeypatch, columns, lambda: print_table(kind.header, rows, keys=keys))
    assert max(map(len, shown.splitlines())) <= columns and "…" not in shown
    known = {word for text in (*kind.header, *(cell for row in rows for cell in row)) for word in text.split()}
    assert set(words_of(shown)) <= known
    # Every cell is there once, and those that name a row in every part.
    for cell in rest[: len(kind.header) - keys]:
        assert shown.count(cell) >= len(rows)
    if columns == 200:
        assert shown.count(kind.header[0]) == (4 if kind is Study else 1)  # one table, and three readings


@pytest.mark.parametrize("layers", [False, True])
def test_why_in_eighty_columns(capsys, monkeypatch, layers):
    shown = printed(capsys, monkeypatch, 80, lambda: a_why().show(layers=layers))
    assert max(map(len, shown.splitlines())) <= 80
    for word in (
        "+2.76",
        "<i>src",
        "<b>id",
        "<script>x</script> tail",
        "pair: ‹\\n› ‹x</script>› +2",
        "says for: ‹\\n› +2.3  ‹ <y>› +0.5",
        "note      <u>note",
    ):
        assert word in shown, word
    assert ("layer: <s>layer +2" in shown) == ("layer: other +0.76" in shown) == layers


def two_documents(factor):
    """The same text twice, the second document with parts of a hundredth."""
    text, spans = "alpha beta", ((0, 5), (5, 10))
    first = Hit("a", 0, 1.0, "s", text, None, spans, (0.25, 0.75))
    second = Hit("b", 1, factor, "s", text, None, spans, (0.25 * factor, 0.75 * factor))
    return Hits(("q",), ((first, second),), ((),), (1.0,), "nats", "m", 2)


def test_shading_is_scaled_to_the_answer_and_not_to_the_document():
    hits = two_documents(0.01)
    peak = peak_of(hits.proponents[0])
    assert peak == 0.75
    strengths = [[part.strength for part in pieces(hit, peak)] for hit in hits.proponents[0]]
    assert strengths[0] == pytest.approx([1 / 3, 1.0]) and strengths[1] == pytest.approx([1 / 300, 0.01])
    shown = hits_fragment(hits)
    assert shown.count("<mark") == 2 + 2  # of the first document, and of the legend
    assert 'class="p8"' in shown and shown.count("alpha") == 2
    assert hits_fragment(two_documents(1.0)).count("<mark") == 4 + 2
    assert "against the strongest token of all examples of the answer" in shown


def test_shading_in_the_terminal_is_scaled_alike(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for factor, strong in ((0.01, 1), (1.0, 2)):
        shown = printed(capsys, monkeypatch, 80, lambda factor=factor: print_hits(two_documents(factor)))
        assert len(re.findall(r"\x1b\[1;[0-9;]*4[0-9][0-9;]*mbeta", shown)) == strong, repr(shown)


def test_views_of_why_are_scaled_alike():
    answer = a_why()
    alone = why_fragment(answer).count('class="p8"')
    (hit,) = answer.hits.proponents[0]
    parts = answer.parts[hit.id]
    other = replace(hit, id="weak", score=hit.score / 100, token_scores=tuple(score / 100 for score in hit.token_scores))
    both = replace(
        answer, hits=replace(answer.hits, proponents=((hit, other),)),
        parts={**answer.parts, "weak": replace(parts, scores_AT=parts.scores_AT / 100)},
    )  # fmt: skip
    shown = why_fragment(both)
    assert alone >= 3 and shown.count('class="p8"') == alone and shown.count("<rect") == 4


def test_titles_of_pages_carry_the_question(tmp_path):
    a_why().page(tmp_path / "why.html")
    assert "<title>p&lt;q &lt;y&gt; - whence</title>" in (tmp_path / "why.html").read_text("utf-8")
    assert question_title(["The capital of France is Paris"]) == "The capital of France is Paris - whence"
    assert len(question_title(["word " * 100] * 3)) < 120
    assert "<title>a &amp; b</title>" in page("Heading", [], tab="a & b") and "<h1>Heading</h1>" in page("Heading", [], tab="x")


def test_long_names_break_behind_their_separators_only():
    name = "library/<b>multiprocessing.shared_memory#12"
    assert breakable(name) == "library/<wbr>&lt;b&gt;multiprocessing.<wbr>shared_<wbr>memory#<wbr>12"
    assert breakable("json.dumps#1") == "json.dumps#1"
