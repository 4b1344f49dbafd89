"""What readers see: nothing lost, nothing run, nothing fetched."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.errors import BadInput
from whence.report import (
    Hit,
    Hits,
    Point,
    bars_section,
    heat_section,
    hits_fragment,
    page,
    plot_section,
    print_hits,
    table_section,
    write_page,
)
from whence.report.passages import pieces, strongest

_TEXT = "Paris is the <script>alert(1)</script> capital & [bold]not[/bold] Lyon.\n\n" + "Rain fell all day. " * 40
_SPANS = tuple(match.span() for match in re.finditer(r"\s?\S+", _TEXT))
_SCORES = tuple(0.5 if "capital" in _TEXT[a:b] else (-0.2 if "Lyon" in _TEXT[a:b] else 0.001) for a, b in _SPANS)
_HIT = Hit("ex-1", 0, 0.01234567, 'web/<script src="x">.txt', _TEXT, (10, 900), _SPANS, _SCORES)


def _hits(proponents=(_HIT,), opponents=(), queries=("The capital [red]of[/red] <b>France</b>",)) -> Hits:
    count = len(queries)
    return Hits(
        queries=queries,
        proponents=(tuple(proponents),) * count,
        opponents=(tuple(opponents),) * count,
        measurements=(-3.21,) * count,
        unit="nats <i>of</i> log-probability",
        method="lorif",
        num_examples=1234,
        notes=("damping 0.1 [dim]chosen[/dim]",),
        measurement_unit="nats",
    )


def _printed(hits: Hits, capsys, monkeypatch, columns: str = "100") -> str:
    monkeypatch.setenv("COLUMNS", columns)
    print_hits(hits)
    return capsys.readouterr().out


def _whole_texts(fragment: str) -> list[str]:
    blocks = re.findall(r'<pre class="whole" dir="auto">\n(.*?)</pre>', fragment, flags=re.DOTALL)
    return [unescape(re.sub(r"<[^>]*>", "", block)) for block in blocks]


def test_fragment_escapes_everything_from_users():
    fragment = hits_fragment(_hits())
    assert "<script" not in fragment
    assert "<b>France" not in fragment
    assert "<i>of</i>" not in fragment
    assert "web/&lt;script src=&quot;x&quot;&gt;.txt" in fragment
    assert _hits()._repr_html_() == fragment


def test_page_escapes_title_intro_and_headings():
    text = page("<script>1", [("<script>2", "<p>kept</p>")], intro="<script>3")
    assert "<script" not in text
    assert "<p>kept</p>" in text


@pytest.mark.parametrize("text", [_TEXT, "short <one>", "\n\nleading lines & a \r return", "   "])
def test_whole_text_loses_no_character(text):
    spans = tuple(match.span() for match in re.finditer(r"\s?\S+", text))
    hit = replace(_HIT, text=text, token_spans=spans, token_scores=tuple(float(i % 3 - 1) for i in range(len(spans))))
    assert _whole_texts(hits_fragment(_hits([hit]))) == [text]


@given(
    st.text(max_size=30),
    st.lists(
        st.tuples(st.integers(-2, 32), st.integers(-2, 32), st.floats(-1e300, 1e300) | st.just(float("nan"))), max_size=12
    ),
)
def test_pieces_cover_any_text_without_overlap(text, tokens):
    hit = replace(_HIT, text=text, token_spans=tuple(t[:2] for t in tokens), token_scores=tuple(t[2] for t in tokens))
    parts = pieces(hit)
    assert "".join(text[part.start : part.stop] for part in parts) == text
    assert all(-1 <= part.strength <= 1 for part in parts)


def test_bytes_of_one_character_share_a_piece():
    hit = replace(_HIT, text="né", token_spans=((0, 0), (0, 1), (1, 2), (1, 2)), token_scores=(9.0, 1.0, 0.5, 0.25))
    assert [(part.start, part.stop, part.score) for part in pieces(hit)] == [(0, 1, 1.0), (1, 2, 0.75)]


@pytest.mark.parametrize(("score", "word"), [(0.1, "alpha"), (-0.1, "omega")])
def test_passage_stands_around_the_strongest_words_of_the_hits_side(score, word):
    text = "filler " * 60 + "alpha " + "filler " * 60 + "omega " + "filler " * 60
    spans = tuple(match.span() for match in re.finditer(r"\S+", text))
    scores = tuple({"alpha": 1.0, "omega": -1.0}.get(text[a:b], 0.01) for a, b in spans)
    hit = replace(_HIT, score=score, text=text, token_spans=spans, token_scores=scores)
    start, stop = strongest(hit, pieces(hit), 160)
    assert 100 < stop - start <= 160
    assert abs((start + stop) / 2 - text.index(word)) < 40
    assert word in hits_fragment(_hits([hit])).split('class="passage"')[1].split("</p>")[0]


def test_shading_follows_the_sign():
    fragment = hits_fragment(_hits())
    assert '<mark class="p8" title="+0.5">capital</mark>' in fragment
    assert '<mark class="n3" title="-0.2">Lyon.</mark>' in fragment


def test_no_opponents_and_no_text():
    fragment = hits_fragment(_hits([Hit("img-1", 3, 0.5)]))
    assert "No opponents" in fragment
    assert "keeps no text" in fragment
    assert hits_fragment(_hits((), ())).count("<table") == 0


class _Tags(HTMLParser):
    """Collects the tags and the attributes that a browser would see."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.open = set(), set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(attrs)
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_loads_and_runs_nothing():
    chart = bars_section("c", [("a", 1.0, 0.5, 1.5)], "nats")
    text = page("Title", [("Hits", hits_fragment(_hits())), ("Proof", chart), ("Cost", table_section(["a"], [[1]]))])
    seen = _Tags()
    seen.feed(text)
    assert seen.open == []
    assert not seen.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "use"}
    assert {value for name, value in seen.attributes if name == "href"} == {"#section-1", "#section-2", "#section-3"}
    assert not [name for name, _ in seen.attributes if name == "src" or name.startswith("on")]
    assert not re.search(r"https?://|url\(|@import", text)
    assert "default-src 'none'" in text
    assert text.count("<style>") == 1


def test_terminal_shows_sources_scores_and_markup_as_it_is(capsys, monkeypatch):
    out = _printed(_hits(opponents=[replace(_HIT, id="ex-2", score=-1.5, source="forum")] * 5), capsys, monkeypatch)
    for part in (
        "+0.01235",
        "-1.500",
        "forum",
        "ex-2",
        'web/<script src="x">.txt',
        "[bold]not[/bold]",
        "[red]of[/red]",
    ):
        assert part in out
    assert "3 of 5 shown" in out
    assert out.count("nats <i>of</i> log-probability") == 1
    assert "damping 0.1 [dim]chosen[/dim]" in out
    assert "\x1b" not in out


def test_terminal_centres_the_strongest_passage(capsys, monkeypatch):
    text = "filler " * 200 + "needle " + "filler " * 200
    at = text.index("needle")
    hit = replace(_HIT, text=text, token_spans=((0, 6), (at, at + 6)), token_scores=(0.1, 1.0))
    assert re.search(r"… filler .*needle .*filler …", " ".join(_printed(_hits([hit]), capsys, monkeypatch).split()))


def test_terminal_without_opponents_or_text_and_with_long_queries(capsys, monkeypatch):
    out = _printed(_hits([Hit("img-1", 3, 0.5)], queries=("word " * 500, "b")), capsys, monkeypatch, columns="60")
    assert "img-1" in out
    assert "opponents" not in out
    assert out.count("word") < 60
    assert "query 2 of 2" in out
    assert max(map(len, out.splitlines())) <= 60


def test_text_cannot_steer_the_terminal(capsys, monkeypatch):
    hit = replace(_HIT, text="a\x1b[2Jb\ud800", source="s\x07\u202e", token_spans=(), token_scores=())
    out = _printed(_hits([hit]), capsys, monkeypatch)
    assert "a\ufffd[2Jb\ufffd" in out
    assert "s\ufffd\ufffd" in out


def test_report_needs_no_torch_and_any_encoding():
    code = (
        "import sys; from whence.report import Hit, Hits\n"
        "hit = Hit('i', 0, 1.0, 's', '\\u2581t\\u2026 ' * 99)\n"
        "Hits(('caf\\u00e9 \\u2581',), ((hit,),), ((),), (1.0,), 'u', 'm', 1).show()\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "caf? ?" in done.stdout
    assert "?t... ..." in done.stdout


def test_bars_hold_numbers_and_escape_labels():
    chart = bars_section("<c>", [("<a>", -0.5, -0.7, -0.3), ("zero", 0.0, 0.0, 0.0)], "<u>")
    assert "(-0.7 to -0.3)" in chart
    assert not re.search(r"<[acu]>", chart)
    assert bars_section("c", [("zero", 0.0, 0.0, 0.0)], "")
    assert bars_section("c", [("tiny", 1e-9, 1e-9, 2e-9)], "")


@pytest.mark.parametrize("row", [("a", float("nan"), 0.0, 1.0), ("a", 0.5, 1.0, 0.0)])
def test_bars_refuse_what_cannot_be_drawn(row):
    with pytest.raises(BadInput, match="found row 'a' with mean .*needed finite numbers, the low end first"):
        bars_section("c", [row], "nats")


def test_bars_refuse_an_empty_chart():
    with pytest.raises(BadInput, match="found no rows to draw"):
        bars_section("c", [], "nats")


def test_table_escapes_and_refuses_ragged_rows():
    table = table_section(["<h>", "count"], [["<b>", 12345], ["x", 2]])
    assert "&lt;b&gt;" in table
    assert '<td class="number">12,345</td>' in table
    assert "<h>" not in table
    with pytest.raises(BadInput, match="found row 0 with 1 cells; needed 2, as the header"):
        table_section(["a", "b"], [["only"]])


def test_write_page_replaces_whole(tmp_path):
    path = tmp_path / "deep" / "report.html"
    assert write_page(path, "one \ud800", []) == path
    write_page(path, "two", [])
    assert "<title>two</title>" in path.read_text("utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_write_page_says_why_it_cannot(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "report.html", tmp_path):
        with pytest.raises(
            BadInput, match=r"found .* which cannot be written .*; needed .*; do this: choose another output folder"
        ):
            write_page(path, "title", [])
    assert [file.name for file in tmp_path.parent.glob("*.tmp")] == []


def test_marks_by_hand_replace_round_numbers():
    plot = plot_section(
        "c",
        {"a": [Point(0, 0), Point(2, 3)]},
        across="x",
        upwards="y",
        marks_across={1.0: "<one>", 9.0: "nine"},
        marks_upwards={2.0: "100"},
    )
    assert "&lt;one&gt;" in plot and "nine" not in plot and ">100<" in plot and "<one>" not in plot


def test_a_heat_map_shows_every_value_with_its_names():
    found = heat_section("c<", [[1.0, -0.25], [-0.25, 0.0]], [("a", 1), ("<b>", 1)], names=["q1", "q&2"])
    assert found.count("<rect") == 4 and 'class="down" fill-opacity="0.25"' in found and "q1, q&amp;2: -0.25" in found
    assert "&lt;b&gt;" in found and "<b>" not in found and "c&lt;" in found


def test_a_heat_map_refuses_what_is_no_correlation_matrix():
    with pytest.raises(BadInput, match=r"2 rows of \[1, 2\] values, 2 in groups, 2 names"):
        heat_section("c", [[1.0], [1.0, 0.0]], [("a", 2)])
    with pytest.raises(BadInput, match=r"1 rows of \[1\] values, 2 in groups, 2 names"):
        heat_section("c", [[1.0]], [("a", 2)])
    with pytest.raises(BadInput, match="a value that is not from -1 to 1"):
        heat_section("c", [[float("nan")]], [("a", 1)])
