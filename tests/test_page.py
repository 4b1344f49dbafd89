"""The page in a real browser, against a live service on a store of real text: `make test-browser`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import whence
from tests.settings import QUIET

sync_api = pytest.importorskip("playwright.sync_api")

SOURCE = Path(__file__).parent.parent / "src"
HOSTILE = 'json.evil: <script>document.title = "owned"</script><img src=x onerror="document.title=1"> & 🙂 json'
PROMPT = "json.dumps: If ``ensure_ascii``"
COMPLETION = " is false, then the return value can contain non-ASCII characters"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Passages of Python's own documentation, and a small GPT-2 that has read them once."""
    from whence.demo.corpus import python_docs
    from whence.demo.model import Settings, new_model, save, train_tokenizer
    from whence.demo.train import train
    from whence.tasks import CausalLM

    place = tmp_path_factory.mktemp("page")
    documents = [one for one in python_docs() if one["source"].startswith(("json", "re", "queue"))][:60]
    documents.append({"id": "evil", "source": "json.evil", "text": HOSTILE})
    settings = Settings(vocabulary=600, layers=1, width=32, epochs=3)
    tokenizer = train_tokenizer((one["text"] for one in documents), settings)
    dataset = CausalLM(new_model(len(tokenizer), 0, settings), tokenizer, long="truncate").prepare(documents)
    trained = train(dataset, len(tokenizer), seed=0, settings=settings)
    save(trained.model, tokenizer, trained.recipe, place / "model")
    task = CausalLM(trained.model, tokenizer, long="truncate", recipe=trained.recipe)
    origin = {"model": str(place / "model"), "task": "causal_lm", "options": {"long": "truncate"}}
    whence.build(
        task, documents, place / "store", origin=origin, config=whence.BuildConfig(method="logra", rank=8), runtime=QUIET
    )
    questions = [{"prompt": PROMPT, "completion": COMPLETION}, *({"prompt": f"queue.Queue: {n}"} for n in range(7))]
    (place / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    return place


@pytest.fixture(scope="module")
def start(folder):
    """Starts services; gives their address."""
    processes = []

    def run(*options, store=folder / "store", questions=folder / "questions.jsonl"):
        arguments = ["serve", store, "--questions", questions, "--port", "0", "--json"]
        process = subprocess.Popen(
            [sys.executable, "-m", "whence.cli", *map(str, [*arguments, *options])], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
        processes.append(process)
        return json.loads(process.stdout.readline())["url"]

    yield run
    for process in processes:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def start_images(start, pictures):
    """Starts a service of the images, with or without a token."""

    def run(token):
        (pictures / "token").write_text(token or "")
        return start(
            "--trust", "--log", ":memory:", *(["--token-file", pictures / "token"] if token else []),
            store=pictures / "images", questions=pictures / "questions.jsonl",
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def url(start, folder):
    return start("--log", folder / "log.sqlite")


@pytest.fixture(scope="module")
def browser():
    own = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        # Containers run as root, where Chromium has no sandbox.
        found = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield found
        found.close()


@pytest.fixture
def page(browser, url):
    """A page of the service that complains about nothing."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    found, complaints, elsewhere = context.new_page(), [], []
    found.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("request", lambda request: elsewhere.append(request.url) if not request.url.startswith(url) else None)
    found.goto(url)
    found.wait_for_selector("#questions button")
    yield found
    context.close()
    assert complaints == [] and elsewhere == []


def ask(page, prompt=PROMPT, completion=COMPLETION):
    page.fill("#prompt", prompt)
    page.fill("#completion", completion)
    page.click("#ask")
    done(page)


def done(page):
    page.wait_for_selector("#cancel", state="hidden")
    page.wait_for_selector("#answer:not([hidden])")


def ids(page, side="Proponents"):
    return page.locator(f"table[aria-label={side}] code.id").all_inner_texts()


def test_the_first_question_gets_an_answer(page):
    assert page.get_attribute("#prompt", "placeholder") == PROMPT
    page.click("#ask")
    done(page)
    assert page.text_content("#said") == PROMPT + COMPLETION
    assert ids(page)[0].startswith("json.dump") and ids(page, "Opponents")
    assert page.locator("table[aria-label=Proponents] mark").count() > 5
    bars = page.locator("table[aria-label=Proponents] .bar i").evaluate_all(
        "bars => bars.map(bar => parseFloat(bar.style.width))"
    )
    assert bars[0] == 50 and bars == sorted(bars, reverse=True)
    assert page.locator("#shares li").first.inner_text().startswith("json.dump")
    assert "every file of the store has the checksum" in page.inner_text("#verified")
    assert "whence evaluate" in page.inner_text("#not-verified")
    # Whoever cannot see the page is led to the answer.
    assert page.evaluate("document.activeElement.id") == "answer"


def test_the_model_writes_where_nothing_is_given(page):
    ask(page, "queue.Queue.get: Remove and", "")
    said = page.inner_text("#said")
    assert said.startswith("queue.Queue.get: Remove and") and len(said) > 30
    assert page.locator("#said [role=button]").count() > 5


def test_a_stored_answer_gets_scores_of_the_tokens_on_both_sides(page):
    page.evaluate("document.getElementById('tokens').checked = false")
    ask(page)
    assert page.locator(".says").count() == 0 and page.locator("#hits mark").count() == 0
    page.reload()
    page.wait_for_selector("#answer:not([hidden])")
    page.click("#score-tokens")
    page.wait_for_selector(".says")
    done(page)
    assert page.locator("#score-tokens").count() == 0
    rows = page.locator("#hits tbody tr").count()
    assert page.locator(".says").count() == rows and page.locator(".says mark").count() > rows
    assert page.locator(".says").first.inner_text().replace("says for", "").strip() == COMPLETION.strip()
    assert page.locator("table[aria-label=Proponents] .passage mark, table[aria-label=Proponents] .whole mark").count() > 5
    link = page.url
    page.goto("about:blank")
    page.goto(link)  # and they are kept with the answer
    page.wait_for_selector(".says")


def test_a_token_is_asked_about_alone(page):
    ask(page)
    whole = page.inner_text("#measured")
    page.locator("#said [role=button]").nth(2).press("Enter")
    page.wait_for_selector("[aria-pressed=true]")
    done(page)
    assert "this token only" in page.inner_text("#measured") and page.inner_text("#measured") != whole
    assert page.evaluate("document.activeElement.dataset.token") == "3"
    page.click("#whole")
    page.wait_for_selector("[aria-pressed=true]", state="detached")
    assert page.inner_text("#measured") == whole


def test_sources_filter(page):
    ask(page)
    page.click("#shares .filter >> text=/^json.dump$/")
    page.wait_for_selector("#facts:has-text('let through')")
    done(page)
    assert set(page.locator("table.hits .source").all_inner_texts()) == {"json.dump"}
    assert page.input_value("#sources") == "json.dump"


def test_training_text_stays_text(page):
    page.click("#more summary")
    page.fill("#text", "<script>")
    ask(page)
    assert page.locator("table.hits td").last.inner_text().endswith(HOSTILE)
    assert page.title().startswith(PROMPT) and page.locator("table.hits script, table.hits img").count() == 0


def test_a_link_opens_the_same_answer(page, url):
    ask(page)
    before = page.inner_text("#answer .whence")
    page.click("#copy-link")
    page.wait_for_selector("#copied:has-text('Link copied')")
    link = page.evaluate("navigator.clipboard.readText()")
    page.goto("about:blank")
    page.goto(link)
    page.wait_for_selector("#answer:not([hidden])")
    assert page.inner_text("#answer .whence") == before and page.input_value("#prompt") == PROMPT
    page.reload()
    page.wait_for_selector("#answer:not([hidden])")
    assert page.inner_text("#answer .whence") == before
    page.click("#copy-json")
    page.wait_for_selector("#copied:has-text('JSON copied')")
    assert json.loads(page.evaluate("navigator.clipboard.readText()"))["completion"] == COMPLETION


def test_cancel(page, url):
    page.fill("#prompt", PROMPT)
    page.fill("#completion", COMPLETION)
    page.evaluate("document.getElementById('k').value = 60")
    page.click("#ask")
    page.click("#cancel")
    page.wait_for_selector("#cancel", state="hidden")
    assert page.inner_text("#status") == "cancelled" and page.locator("#ask").is_enabled()
    page.evaluate("document.getElementById('k').value = 3")
    ask(page)
    assert len(ids(page)) == 3


def test_a_mistake_is_told(browser, url):
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("#questions button")
    page.fill("#prompt", PROMPT * 40)
    page.click("#ask")
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("#error").startswith("Found a prompt of ")
    page.close()


def test_a_phone_in_the_dark(browser, url):
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True)
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#questions button")
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 23)"
    context.close()


BROKEN = """[...document.querySelectorAll('.id, .source, .bars .name')].filter(one => one.offsetParent).flatMap(one => {
  const text = one.textContent, range = document.createRange(), walker = document.createTreeWalker(one, NodeFilter.SHOW_TEXT);
  const places = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode())
    for (let at = 0; at < node.length; at++) {
      range.setStart(node, at); range.setEnd(node, at + 1);
      places.push([node.data[at], range.getBoundingClientRect().top]);
    }
  return places.some(([letter, top], at) => at && top > places[at - 1][1] + 3 && !/[\\s/._#:-]/.test(places[at - 1][0])) ? [text] : [];
})"""


@pytest.mark.parametrize("width", [390, 1280])
def test_names_are_whole_and_the_title_is_the_question(browser, url, width):
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(url)
    page.wait_for_selector("#questions button")
    assert page.title() == "whence"
    ask(page)
    assert page.evaluate(BROKEN) == [] and page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title().startswith(PROMPT) and page.title().endswith(" - whence") and len(page.title()) < 110
    page.close()


def test_five_questions_to_begin_with_and_more(page):
    chips = page.locator("#questions button")
    assert chips.count() == 6 and chips.last.inner_text() == "3 more"
    chips.last.click()
    assert chips.count() == 8 and "more" not in chips.last.inner_text()
    assert page.evaluate("document.activeElement.textContent") == "queue.Queue: 4"


def test_everything_has_a_name_and_the_keyboard_reaches_it(page):
    ask(page)
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, textarea, select, [role=button]')]
           .filter(one => one.offsetParent && !(one.innerText || one.labels?.length || one.getAttribute('aria-label')))
           .map(one => one.outerHTML)"""
    )
    assert unnamed == []
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    done(page)
    page.focus("#prompt")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "completion"
    assert page.evaluate("document.querySelector('h1') && document.documentElement.lang") == "en"


def test_redacted_and_closed(start, browser, folder):
    (folder / "token").write_text("0123456789abcdef\n")
    url = start("--log", ":memory:", "--redacted", "--token-file", folder / "token")
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("#token-form:not([hidden])")
    page.fill("#token", "0123456789abcdef")
    page.press("#token", "Enter")
    page.wait_for_selector("#questions button")
    ask(page)
    assert "This service does not show training data." in page.inner_text("#hits")
    assert page.locator("mark").count() == 0 and not page.locator("#text").is_visible()
    assert ids(page)
    page.close()


MODEL = """
import numpy as np, torch, whence
from torch import nn

def gray(image):
    return torch.from_numpy(np.asarray(image.convert("L"), np.float32))[None] / 127.5 - 1

def task():
    torch.manual_seed(0)
    return whence.Classification(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), preprocess=gray, labels=["cat", "dog"])
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eight images of two classes, and their store."""
    numpy, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    from whence.cli import main

    place, generator = tmp_path_factory.mktemp("pictures"), numpy.random.default_rng(0)
    for number in range(8):
        kind = place / "data" / ("cat", "dog")[number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        image.fromarray(generator.integers(0, 256, (8, 8), dtype=numpy.uint8)).save(kind / f"{number}.png")
    (place / "model.py").write_text(MODEL)
    assert (
        main(
            ["build", "--model", f"{place / 'model.py'}:task", "--data", str(place / "data"), "--output", str(place / "images")]
        )
        == 0
    )
    (place / "questions.jsonl").write_text('{"example": "cat/0.png", "label": "dog"}\n')
    return place


@pytest.mark.parametrize("token", [None, "0123456789abcdef"])
def test_images(start_images, browser, pictures, token):
    url = start_images(token)
    page, complaints = browser.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    if token:
        page.fill("#token", token)
        page.press("#token", "Enter")
    page.wait_for_selector("#questions button")
    complaints.clear()  # the refusal before the token was there
    assert not page.is_visible("#prompt") and not page.is_visible("#completion") and page.is_visible("#image")
    page.set_input_files("#image", pictures / "data" / "cat" / "2.png")
    page.wait_for_selector("#preview:not([hidden])")
    page.fill("#label", "cat")
    page.click("#ask")
    done(page)
    page.wait_for_selector("#asked-image:not([hidden])")
    assert page.inner_text("#said").startswith("cat") and ids(page)[0] == "cat/2.png"
    assert page.locator("table.hits .label-name").count() == page.locator("table.hits tbody tr").count()
    page.wait_for_selector("table.hits canvas:not([width='128'])", state="detached")
    # The picture itself is there, not an empty field.
    shown = """id => {
        const one = document.querySelector(id);
        return [...one.getContext('2d').getImageData(0, 0, one.width, one.height).data];
    }"""
    assert page.evaluate(shown, "table.hits canvas") == page.evaluate(shown, "#asked-image")
    page.click("#questions button")
    page.wait_for_selector("#said:has-text('dog')")
    done(page)
    page.reload()
    page.wait_for_selector("#asked-image:not([hidden])")
    assert page.input_value("#example") == "cat/0.png" and page.input_value("#label") == "dog"
    page.set_input_files("#image", {"name": "no.png", "mimeType": "image/png", "buffer": b"no image"})
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("#error").startswith("Found a file that is no image") and complaints == []
    page.close()
