// The page of `whence serve`. Everything that comes from outside goes in as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const SHADES = 8;
// Questions to begin with that are shown at once.
const CHIPS = 5;
// A question of more tokens is folded beside each hit.
const LONG = 40;
const PHASES = { writing: "writing", gradients: "reading the question", scan: "scanning the store", tokens: "looking into the examples" };
const state = { stores: [], limits: {}, redacted: false, answer: null, running: null };

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Python counts characters, JavaScript halves of them.
const slice = (text, start, stop) => Array.from(text).slice(start, stop).join("");
const number = (value) => Number(value).toPrecision(4).replace(/e([+-])/, "e$1");
const signed = (value) => (value >= 0 ? "+" : "\u2212") + number(Math.abs(value));
const percent = (value) => (100 * value).toFixed(value < 0.1 ? 1 : 0) + " %";

async function call(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  const token = sessionStorage.getItem("whence-token");
  if (token) headers.Authorization = "Bearer " + token;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  let told = { found: "status " + response.status, needed: "", do: "" };
  try { told = (await response.json()).error; } catch { /* not ours */ }
  throw Object.assign(new Error(sentence(told)), { status: response.status });
}

function sentence(told) {
  return ["Found " + told.found, told.needed && "needed " + told.needed, told.do && "do this: " + told.do].filter(Boolean).join("; ") + ".";
}

function fail(error) {
  if (error.status === 401) { $("token-form").hidden = false; $("token").focus(); }
  $("error").textContent = error.message || String(error);
  $("error").hidden = false;
}

const list = (words) => words.split(",").map((word) => word.trim()).filter(Boolean);

const chosen = () => state.stores.find((one) => one.name === $("store").value);

async function request(token) {
  const kind = token === null ? chosen().kind : "completion";
  if (kind !== "completion") return requestItem(kind);
  const body = { prompt: $("prompt").value, k: Number($("k").value) || 8, tokens: $("tokens").checked && !state.redacted };
  body.filter = { sources: list($("sources").value), text: $("text").value, since: $("since").value || null, until: $("until").value || null };
  if (token !== null) return { ...body, prompt: state.answer.prompt, completion: state.answer.completion, token };
  if ($("completion").value) return { ...body, completion: $("completion").value, ...($("foil").value ? { foil: $("foil").value } : {}) };
  return { ...body, max_tokens: Number($("max-tokens").value) || 40, temperature: Number($("temperature").value) || 0 };
}

async function requestItem(kind) {
  const body = { label: $("label").value || null, k: Number($("k").value) || 8 };
  body.filter = { sources: list($("sources").value), since: $("since").value || null, until: $("until").value || null };
  if (kind === "text") return { ...body, text: $("prompt").value, filter: { ...body.filter, text: $("text").value } };
  const file = $("image").files[0];
  if (!file) return { ...body, example: $("example").value.trim() };
  if (file.size > state.limits.max_image_bytes) throw new Error(`Found an image of ${file.size.toLocaleString("en")} bytes; needed at most ${state.limits.max_image_bytes.toLocaleString("en")}.`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  let binary = "";
  for (let at = 0; at < bytes.length; at += 32768) binary += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return { ...body, image: btoa(binary) };
}

// Images are fetched with the token and drawn: the page's policy lets none in from elsewhere, not even as data.
async function draw(canvas, blob) {
  const bitmap = await createImageBitmap(blob);
  const longest = Math.max(bitmap.width, bitmap.height);
  // Images of few pixels are drawn larger, each pixel a square.
  const scale = longest > 256 ? 256 / longest : longest <= 64 ? Math.floor(128 / longest) : 1;
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = scale < 1;
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  canvas.hidden = false;
  bitmap.close();
}

async function drawFrom(canvas, path) {
  try { await draw(canvas, await (await call(path)).blob()); } catch { canvas.replaceWith(make("p", { class: "muted none" }, "No image can be shown here.")); }
}

async function ask(token = null) {
  if (state.running) return;
  const store = token === null ? $("store").value : state.answer.store;
  const control = new AbortController();
  state.running = { control, id: null };
  busy(true);
  $("status").textContent = "in the line";
  try {
    const body = await request(token);
    const verb = "label" in body ? "attribute-item" : "completion" in body ? "attribute" : "ask";
    const response = await call(`v1/stores/${encodeURIComponent(store)}/${verb}`, {
      method: "POST", body: JSON.stringify(body), signal: control.signal,
      headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    });
    for await (const [name, data] of events(response)) {
      if (name === "begun") state.running.id = data.id;
      if (name === "progress") progress(data);
      if (name === "error") throw new Error(sentence(data.error));
      if (name === "answer") { history.pushState(null, "", "#" + data.id); show(data); if (token === null) $("answer").focus(); }
    }
    $("status").textContent = "";
  } catch (error) {
    $("status").textContent = error.name === "AbortError" ? "cancelled" : "";
    if (error.name !== "AbortError") fail(error);
  } finally {
    state.running = null;
    busy(false);
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const name = /^event: (.*)$/m.exec(block), data = /^data: (.*)$/m.exec(block);
      if (name && data) yield [name[1], JSON.parse(data[1])];
    }
  }
}

function busy(is) {
  $("ask").disabled = is;
  $("cancel").hidden = !is;
  $("progress").hidden = !is;
  $("answer").classList.toggle("stale", is);
  if (is) { $("error").hidden = true; $("progress").removeAttribute("value"); }
}

function progress({ phase, done, total }) {
  $("progress").value = done / Math.max(total, 1);
  const text = PHASES[phase] || phase;
  if ($("status").textContent !== text) $("status").textContent = text;
}

function cancel() {
  const { control, id } = state.running || {};
  if (id) call(`v1/answers/${encodeURIComponent(id)}/cancel`, { method: "POST" }).catch(() => {});
  if (control) control.abort();
}

function titled(answer) {
  const item = answer.item && `${answer.prompt || answer.item.example || "an image"} ${answer.item.label}`;
  const question = (item || answer.prompt + answer.completion).trim();
  document.title = (question.length > 90 ? question.slice(0, 88) + " …" : question).replace(/\s+/g, " ") + " - whence";
}

function show(answer) {
  state.answer = answer;
  titled(answer);
  $("answer").hidden = false;
  said(answer);
  const measured = $("measured");
  measured.replaceChildren("Measured ", make("b", {}, number(answer.measurement)), " " + answer.measurement_unit + (answer.token === null ? "" : ", this token only") + (answer.foil ? ", less that of: " + answer.foil : ""));
  const peak = Math.max(...[...answer.proponents, ...answer.opponents].map((hit) => Math.abs(hit.score)), 0) || 1;
  $("hits").replaceChildren(
    side("Proponents", "more weight on these raises the measurement", answer.proponents, peak),
    side("Opponents", "more weight on these lowers the measurement", answer.opponents, peak),
    ...beside(answer));
  const allowed = answer.num_allowed < answer.num_examples ? `, ${answer.num_allowed.toLocaleString("en")} of them let through by the filter` : "";
  facts($("facts"), { "score in": answer.unit, method: answer.method, searched: `${answer.num_examples.toLocaleString("en")} examples${allowed}`, took: `${answer.seconds.toFixed(2)} s` });
  for (const note of answer.notes) $("facts").append(make("div", {}, make("dt", {}, "note"), make("dd", {}, note)));
  shares(answer);
}

function saidItem(answer) {
  const { label, is_predicted: isPredicted, predicted } = answer.item;
  const parts = answer.prompt ? [make("span", { class: "asked" }, answer.prompt), " "] : [];
  if (label) parts.push(make("b", {}, label));
  else if (!answer.prompt) parts.push(answer.item.example || "This image");
  if (label && predicted && predicted !== label) parts.push(" ", make("b", { class: "disputed" }, "the model says " + predicted));
  $("said").replaceChildren(...parts);
  $("hint").textContent = label ? (isPredicted ? "The label is the one that the model sees." : "The label is the one that was asked about.") : "";
}

function said(answer) {
  $("asked-image").hidden = true;
  if (answer.item?.image) drawFrom($("asked-image"), answer.item.image);
  if (answer.item) return saidItem(answer);
  const whole = make("span", { class: "asked" }, answer.prompt);
  const parts = [whole];
  let at = 0;
  answer.tokens.forEach((token, place) => {
    // Bytes of one character are tokens of their own and cover it alike.
    if (token.stop <= at) return;
    const text = slice(answer.completion, Math.max(at, token.start), token.stop);
    if (token.start > at) parts.push(slice(answer.completion, at, token.start));
    at = token.stop;
    if (!token.is_scored) { parts.push(text); return; }
    const button = make("span", { role: "button", tabindex: "0", "aria-pressed": String(answer.token === place + 1), "data-token": place + 1,
      "aria-label": "token " + (text.trim() || "space"), title: "Where does this token come from?" }, text);
    parts.push(button);
  });
  parts.push(slice(answer.completion, at));
  $("said").replaceChildren(...parts);
  $("hint").replaceChildren(answer.token === null ? "Choose a token to ask about it alone." : make("button", { type: "button", id: "whole", class: "plain-button" }, "Ask about the whole completion again"));
  const isScored = answer.tokens_asked || [...answer.proponents, ...answer.opponents].some((hit) => hit.tokens);
  if (!isScored && !answer.redacted) $("hint").append(" ", make("button", { type: "button", id: "score-tokens", class: "plain-button" }, "Score its tokens and those of the examples"));
}

function choose(event) {
  const place = event.target.closest("[data-token]")?.dataset.token;
  if (place === undefined || (event.type === "keydown" && event.key !== "Enter" && event.key !== " ")) return;
  event.preventDefault();
  ask(Number(place)).then(() => document.querySelector(`[data-token="${place}"]`)?.focus());
}

function side(name, meaning, hits, peak) {
  if (!hits.length) return make("p", { class: "muted none" }, `No ${name.toLowerCase()} were found.`);
  const head = make("tr", {}, make("th", { scope: "col", class: "rank" }, "#"), make("th", { scope: "col", class: "score" }, "Score"), make("th", { scope: "col" }, "Training example"));
  const body = make("tbody", {}, ...hits.map((hit, place) => row(hit, place + 1, peak)));
  const caption = make("caption", {}, make("b", {}, name), " ", make("span", { class: "muted" }, meaning));
  return make("table", { class: "hits", "aria-label": name }, caption, make("thead", {}, head), body);
}

function row(hit, rank, peak) {
  const fill = make("i", { class: hit.score >= 0 ? "up" : "down" });
  const width = 50 * Math.min(Math.abs(hit.score) / peak, 1);
  fill.style.left = (hit.score >= 0 ? 50 : 50 - width) + "%";
  fill.style.width = width + "%";
  const origin = make("div", { class: "origin" });
  if (hit.source) origin.append(make("b", { class: "source" }, ...breakable(hit.source)), " ");
  origin.append(make("code", { class: "id" }, ...breakable(hit.id)));
  if (hit.label !== undefined) origin.append(" ", ...labelled(hit.label, hit.is_disputed ? hit.predicted : ""));
  if (hit.time !== undefined) origin.append(" ", make("span", { class: "muted" }, new Date(1000 * hit.time).toISOString().slice(0, 10)));
  const shared = state.answer.beside?.hits.find((one) => one.row === hit.row);
  if (shared) origin.append(make("p", { class: "muted shared" }, ...sharing(shared, hit)));
  return make("tr", {}, make("td", { class: "rank" }, String(rank)),
    make("td", { class: "score" }, make("span", { class: "value" }, signed(hit.score)), make("span", { class: "bar", "aria-hidden": "true" }, fill)),
    make("td", {}, origin, ...saysFor(hit), example(hit)));
}

// The question's tokens, each shaded by the part of the score that is about it.
function saysFor(hit) {
  if (!hit.query_scores) return [];
  const { proponents, opponents, query_tokens: tokens } = state.answer;
  const peak = Math.max(...[...proponents, ...opponents].flatMap((one) => one.query_scores || []).map(Math.abs), 0) || 1;
  const words = hit.query_scores.flatMap((score, place) => marked(tokens[place], score, score / peak));
  const line = make("p", { class: "says", dir: "auto" }, make("span", { class: "muted" }, "says for"), " ", ...words);
  return words.length && hit.query_scores.length <= LONG ? [line] : [make("details", { class: "more" }, make("summary", {}, "What it says for each token of the question"), line)];
}

function marked(text, score, strength) {
  const step = Math.round(Math.abs(strength) * SHADES);
  const word = text.replace(/^ +/, "") || text;
  if (!step) return [text];
  return [text.slice(0, text.length - word.length), make("mark", { class: (score > 0 ? "p" : "n") + step, title: signed(score) }, word)];
}

const KINDS = { copied: "copied", related: "related", influential: "only influential" };

// What a document has in common with the answer by its words.
function sharing(shared, hit) {
  const run = slice(hit.text || "", ...shared.span).replace(/\s+/g, " ");
  const words = shared.words ? `shares ${shared.words} word${shared.words > 1 ? "s" : ""}: ${run}` : "shares no word with it";
  return [make("b", {}, KINDS[shared.kind]), `: ${words}; ${shared.bm25 > 0 ? "BM25 rank " + shared.bm25_rank.toLocaleString("en") : "BM25 0"}`];
}

// The runs of the completion that stand in the corpus, and the documents that are most alike by words.
function beside({ beside: found }) {
  if (!found) return [];
  const named = (documents) => documents.map((one) => one.id + (one.is_hit ? " (found by influence, too)" : "")).join(", ");
  const rows = found.spans.slice(0, 5).map((span) => make("tr", {}, make("td", { class: "number" }, String(span.words)),
    make("td", { class: "number" }, span.count.toLocaleString("en")), make("td", {}, span.text), make("td", {}, make("code", { class: "id" }, named(span.documents)))));
  const head = make("tr", {}, ...["words", "times", "in the corpus word for word", "documents"].map((name) => make("th", { scope: "col" }, name)));
  const table = rows.length ? [make("table", { class: "pairs" }, make("thead", {}, head), make("tbody", {}, ...rows))] : [];
  return [make("div", { class: "beside" }, make("p", { class: "muted" }, `${percent(found.covered)} of its words stand in the corpus in runs of 4 or more.`), ...table,
    make("p", { class: "muted" }, `Most alike by words (BM25): ${named(found.related) || "none shares a word"}`))];
}

// A name that breaks behind its separators where a line is too narrow for it, and nowhere else.
const breakable = (name) => name.split(/(?<=[/._#:-])(?=[^/._#:-])/).flatMap((part, place) => (place ? [make("wbr"), part] : [part]));

// A label, marked where the model sees another class.
function labelled(label, disputedBy) {
  const parts = [make("span", { class: "label-name" }, "label ", make("b", {}, label))];
  return disputedBy ? [...parts, " ", make("b", { class: "disputed" }, "the model says " + disputedBy)] : parts;
}

function example(hit) {
  if (hit.image) {
    const canvas = make("canvas", { class: "thumb", role: "img", "aria-label": "training image " + hit.id });
    drawFrom(canvas, hit.image);
    return canvas;
  }
  if (hit.text === undefined) return make("p", { class: "muted none" }, "This service does not show training data.");
  if (!hit.text) return make("p", { class: "muted none" }, "The store keeps no text for this example.");
  const [start, stop] = hit.passage;
  const length = Array.from(hit.text).length;
  const whole = () => make("pre", { class: "whole", dir: "auto" }, ...shaded(hit, 0, length));
  if (start === 0 && stop === length) return whole();
  const passage = make("p", { class: "passage", dir: "auto" }, start > 0 ? "… " : "", ...shaded(hit, start, stop), stop < length ? " …" : "");
  const more = make("details", { class: "more" }, make("summary", {}, `Whole text, ${length.toLocaleString("en")} characters`), whole());
  return make("div", {}, passage, more);
}

function shaded(hit, start, stop) {
  const characters = Array.from(hit.text);
  const parts = [];
  let at = start;
  for (const token of hit.tokens || []) {
    const [first, last] = [Math.max(token.span[0], start), Math.min(token.span[1], stop)];
    if (first >= last || first < at) continue;
    if (first > at) parts.push(characters.slice(at, first).join(""));
    at = last;
    parts.push(...marked(characters.slice(first, last).join(""), token.score, token.strength));
  }
  parts.push(characters.slice(at, stop).join(""));
  return parts;
}

function shares(answer) {
  const all = answer.shares.filter((share) => share.positive > 0).sort((a, b) => b.share - a.share);
  const others = all.filter((share) => share.source === "(other sources)");
  const named = all.filter((share) => share.source !== "(other sources)");
  const listed = named.slice(0, 12), left = [...named.slice(12), ...others];
  const peak = Math.max(...listed.map((share) => share.share), 0) || 1;
  const items = listed.map((share) => {
    const name = share.source ? make("button", { type: "button", class: "filter", "data-source": share.source, title: "Rank this source only" }, ...breakable(share.source)) : "(no source)";
    return bar(make("span", { class: "name" }, name), share.share, share.share / peak, share.positive);
  });
  if (left.length) {
    const sum = (key) => left.reduce((total, share) => total + share[key], 0);
    items.push(bar(make("span", { class: "name" }, "all other sources"), sum("share"), 0, sum("positive")));
    items.at(-1).classList.add("rest");
  }
  $("shares").querySelector("ul").replaceChildren(...items);
}

function bar(name, share, width, positive) {
  const track = make("span", { class: "track", "aria-hidden": "true" }, make("i"));
  track.firstChild.style.width = 100 * width + "%";
  return make("li", {}, name, track, make("span", { class: "reading" }, make("b", {}, percent(share)), " " + signed(positive)));
}

function facts(into, pairs) {
  into.replaceChildren(...Object.entries(pairs).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
}

function about() {
  const store = chosen();
  if (!store) return;
  $("about").hidden = false;
  kindOf(store);
  facts($("store-facts"), {
    examples: store.num_examples.toLocaleString("en"), sources: store.num_sources.toLocaleString("en"), method: store.method, "a row": `${store.bytes_per_example.toLocaleString("en")} bytes`,
    model: `${store.model} (weights ${store.weights.slice(0, 12)})`, ...(store.context === null ? {} : { context: `${store.context.toLocaleString("en")} tokens` }), tracked: store.coverage, damping: store.damping,
  });
  for (const [id, lines] of [["verified", store.verified], ["not-verified", store.not_verified]]) $(id).replaceChildren(...lines.map((line) => make("li", {}, line)));
  for (const field of document.querySelectorAll(".time")) field.hidden = !store.has_times;
  const buttons = store.questions.map((question) => {
    const name = question.prompt || question.example;
    const button = make("button", { type: "button", title: name + (question.completion || "") }, name.length > 60 ? name.slice(0, 58) + " …" : name);
    button.addEventListener("click", () => { fill(question); ask(); });
    return button;
  });
  const rest = buttons.splice(CHIPS);
  const more = make("button", { type: "button", class: "more-questions", "aria-label": `${rest.length} more questions` }, `${rest.length} more`);
  more.addEventListener("click", () => { more.replaceWith(...rest); rest[0].focus(); });
  $("questions").replaceChildren($("questions").firstElementChild, ...buttons, ...(rest.length ? [more] : []));
  $("questions").hidden = !buttons.length;
  $("prompt").placeholder = store.questions[0]?.prompt || "";
  $("completion").placeholder = store.questions[0]?.completion || "";
  $("example").placeholder = store.questions[0]?.example || "";
}

const INTRO = {
  completion: $("intro").textContent,
  text: "Write a text. Below stand the training examples that make the model give it its label, with how much each one counts.",
  image: "Choose an image. Below stand the training images that make the model see it as it does, with how much each one counts.",
};

function kindOf(store) {
  for (const field of document.querySelectorAll("[data-kind]")) field.hidden = !field.dataset.kind.split(" ").includes(store.kind);
  $("tokens-row").hidden ||= state.redacted;
  $("text-row").hidden = state.redacted || store.kind === "image";
  $("intro").textContent = INTRO[store.kind];
  $("prompt-label").textContent = store.kind === "text" ? "Text" : "Prompt";
  $("label-hint").hidden = !store.sees_labels;
  $("labels").replaceChildren(...store.labels.map((label) => make("option", { value: label })));
}

function fill({ prompt, completion, foil, item, example, label }) {
  $("prompt").value = prompt;
  $("completion").value = item ? "" : completion || "";
  $("foil").value = item ? "" : foil || "";
  $("example").value = item ? item.example : example || "";
  $("label").value = item ? (item.is_predicted ? "" : item.label) : label || "";
  if (!item || item.example) $("image").value = "";
  if (!$("image").files.length) $("preview").hidden = true;
}

async function reopen() {
  const id = location.hash.slice(1);
  if (!/^[\w-]{8,}$/.test(id) || (state.answer && state.answer.id === id)) return;
  try {
    const answer = await (await call("v1/answers/" + encodeURIComponent(id))).json();
    $("store").value = answer.store;
    fill(answer);
    $("sources").value = answer.filter.sources.map((source) => source.replaceAll(",", "?")).join(", ");
    $("text").value = answer.filter.text;
    for (const name of ["since", "until"]) $(name).value = answer.filter[name] === null ? "" : new Date(1000 * answer.filter[name]).toISOString().slice(0, 10);
    about();
    show(answer);
  } catch (error) { fail(error); }
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    $("copied").textContent = what + " copied";
  } catch { $("copied").textContent = "the browser does not let the page copy"; }
}

async function begin() {
  try {
    const found = await (await call("v1/stores")).json();
    Object.assign(state, found);
    $("store").replaceChildren(...found.stores.map((store) => make("option", { value: store.name }, store.name)));
    $("store-row").hidden = found.stores.length < 2;
    $("k").max = found.limits.max_k;
    $("max-tokens").max = found.limits.max_new_tokens;
    $("health").textContent = "The service answers." + (found.redacted ? " It shows ids, values and shares, and no training data." : "");
    $("error").hidden = $("token-form").hidden = true;
    about();
    await reopen();
  } catch (error) { $("health").textContent = "The service does not answer."; fail(error); }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const store = chosen();
  const isEmpty = store?.kind === "image" ? !$("image").files.length && !$("example").value : !$("prompt").value && !$("completion").value;
  // The placeholder is the first question: asking nothing asks that.
  if (isEmpty && store?.questions.length) fill(store.questions[0]);
  else if (isEmpty) { $(store?.kind === "image" ? "image" : "prompt").focus(); return; }
  ask();
});
$("prompt").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit(); });
$("token-form").addEventListener("submit", (event) => { event.preventDefault(); sessionStorage.setItem("whence-token", $("token").value.trim()); begin(); });
$("cancel").addEventListener("click", cancel);
$("store").addEventListener("change", about);
$("image").addEventListener("change", () => {
  const file = $("image").files[0];
  $("preview").hidden = true;
  if (file) { $("example").value = ""; draw($("preview"), file).catch(() => fail(new Error("Found a file that is no image; needed a PNG or JPEG file."))); }
});
$("example").addEventListener("input", () => { $("image").value = ""; $("preview").hidden = true; });
$("said").addEventListener("click", choose);
$("said").addEventListener("keydown", choose);
$("hint").addEventListener("click", (event) => {
  if (event.target.id !== "score-tokens") return;
  $("tokens").checked = true;
  $("k").value = state.answer.k;
  fill(state.answer);
  ask(state.answer.token);
});
$("hint").addEventListener("click", (event) => { if (event.target.id === "whole") { $("prompt").value = state.answer.prompt; $("completion").value = state.answer.completion; $("foil").value = state.answer.foil || ""; ask(); } });
$("shares").addEventListener("click", (event) => {
  const source = event.target.closest("[data-source]")?.dataset.source;
  if (source === undefined) return;
  // A comma parts sources in the field; "?" stands for any character.
  $("sources").value = source.replaceAll(",", "?");
  $("more").open = true;
  fill(state.answer);
  ask(state.answer.token);
});
$("copy-json").addEventListener("click", () => copy(JSON.stringify(state.answer, null, 2), "JSON"));
$("copy-link").addEventListener("click", () => copy(location.href.split("#")[0] + "#" + state.answer.id, "Link"));
window.addEventListener("hashchange", reopen);
window.addEventListener("popstate", reopen);
begin();
