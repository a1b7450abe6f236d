// The form, the examples, and what is asked of the server.

const narrow = matchMedia("(max-width: 60rem)").matches;
let first = ""; // the example that the page opens on, until the form is touched
let example = null; // the last example, with its judgements
let asked = null; // aborts the request in flight
let ranked = null; // the request whose answer is shown
let chosen = false; // whether the user chose the format
let source = ""; // where the documents come from, if not from typing
let guarded = false; // whether requests need a key

async function call(path, body, signal) {
  const options = body === undefined ? { signal } : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  let response;
  try { response = await fetch(path, options); } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
  }
  const answer = await response.json().catch(() => null);
  if (!response.ok && !(path === "health" && answer)) {
    const wait = response.headers.get("Retry-After");
    throw new Error(`${response.status}: ${answer?.error?.message ?? response.statusText}${wait ? ` (try again in ${wait} s)` : ""}`);
  }
  return answer;
}

function fail(error) {
  byId("error").textContent = error ? error.message : "";
  byId("error").hidden = !error;
}

function setFormat(format, byUser = false) {
  byId("format").value = format;
  chosen = byUser && format !== "auto";
}

// Say what the text was recognised as, and offer the other reading where blank lines leave a doubt.
function recognised() {
  const text = byId("documents").value;
  const count = byId("count");
  if (!text.trim()) { count.textContent = "paste, type or drop files here"; return; }
  const wanted = byId("format").value;
  const format = wanted === "auto" ? recognise(text) : wanted;
  try {
    const found = split(text, format).length;
    count.textContent = `${numbers.format(found)} · ${source || FORMATS[format].one}`;
    const other = { lines: "blocks", blocks: "lines" }[format];
    const otherwise = other && !source ? split(text, other).length : found;
    byId("other").hidden = otherwise === found || found === 0;
    byId("other").textContent = other ? `Read as ${numbers.format(otherwise)} ${other} instead` : "";
    byId("other").value = other ?? "";
  } catch (error) {
    count.textContent = error.message;
    byId("other").hidden = true;
  }
}

// The body of POST /v1/rerank for what the form holds.
function request() {
  const body = { query: byId("query").value, documents: split(byId("documents").value, byId("format").value) };
  const instruction = byId("instruction").value.trim();
  const limit = byId("limit").valueAsNumber;
  if (instruction) body.instruction = instruction;
  if (Number.isFinite(limit)) body.max_tokens_per_doc = limit;
  return body;
}

async function rank() {
  fail(null);
  byId("snippet").hidden = true;
  let body;
  try { body = request(); } catch (error) { fail(error); return; }
  if (body.documents.length === 0) {
    byId("editor").open = true;
    byId("documents").focus();
    fail(new Error("Give at least one document."));
    return;
  }
  const judged = example?.query === body.query && example.texts.join("\n\n") === body.documents.join("\n\n") ? example : null;
  const grades = judged?.grades ?? new Map();
  if (JSON.stringify([body.documents, [...grades]]) !== shown) show(body.documents, grades);
  asked?.abort();
  const mine = asked = new AbortController();
  byId("status").textContent = `ranking ${numbers.format(body.documents.length)} documents …`;
  const started = performance.now();
  try {
    const answer = await call("v1/rerank", body, mine.signal);
    const milliseconds = performance.now() - started;
    ranked = body;
    figures(answer, milliseconds);
    reorder(answer);
    if (judged) {
      const before = body.documents.map((text) => grades.get(text) ?? 0);
      quality(before, answer.results.map((each) => before[each.index]), judged.judged, judged.reason);
    }
    byId("title").textContent = "Ranking";
    byId("status").textContent = `${numbers.format(body.documents.length)} documents, most relevant first`;
    byId("copies").hidden = false;
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("status").textContent = "";
    fail(error);
  }
}

// Ask what each sentence of one document adds, for the query that was ranked.
async function explain(each) {
  fail(null);
  const text = ranked.documents[each.index];
  try {
    const { results: [result] } = await call("v1/rerank", { ...ranked, documents: [text], explain: "sentences" });
    highlight(each, text, result.explanation.sentences);
  } catch (error) { fail(error); }
}

// Fill the form with an example and rank it.
async function openExample(id) {
  fail(null);
  first = "";
  asked?.abort();
  const mine = asked = new AbortController();
  try {
    const found = await call(`demo/${encodeURIComponent(id)}`, undefined, mine.signal);
    // A blank line would end the document. Everything else stays, so that scores are those of the demo.
    const texts = found.candidates.map((each) => each.text.replace(/\n(\s*\n)+/g, "\n").trim());
    example = {
      query: found.query, texts, judged: found.judged, reason: found.reason,
      grades: new Map(found.candidates.map((each, place) => [texts[place], each.grade]).filter(([, grade]) => grade)),
    };
    byId("demo").value = id;
    byId("query").value = found.query;
    byId("documents").value = texts.join("\n\n");
    setFormat("blocks");
    source = "found by BM25";
    recognised();
    await rank();
  } catch (error) { if (error.name !== "AbortError") fail(error); }
}

// The form is no longer an example's: stop what the page began by itself.
function touched() {
  first = "";
  if (asked) byId("status").textContent = "";
  asked?.abort();
  asked = null;
  byId("demo").value = "";
}

function emptied() {
  byId("query").value = byId("documents").value = source = "";
  setFormat("auto");
  byId("editor").open = true;
  touched();
  recognised();
  fail(null);
  show([]);
  byId("query").focus();
}

async function take(files) {
  if (files.length === 0) return;
  fail(null);
  try {
    const taken = await readFiles([...files]);
    byId("documents").value = taken.text;
    setFormat("auto");
    source = taken.text.trimStart().startsWith("[") ? taken.said : "";
    byId("editor").open = true;
    recognised();
    if (!source) byId("count").textContent += ` · ${taken.said}`;
    touched();
  } catch (error) { fail(error); }
}

// The request as commands; the body is one line, so that no line of it can end the here-document.
function snippets() {
  const url = new URL("v1/rerank", location.href).href;
  const body = request();
  return {
    curl: `curl ${url} -H "Content-Type: application/json"${guarded ? ' -H "Authorization: Bearer $KEY"' : ""} --data-binary @- <<'JSON'\n${JSON.stringify(body)}\nJSON\n`,
    python: [
      "import requests", "",
      `body = ${JSON.stringify(body, null, 4)}`,
      `answer = requests.post("${url}", json=body${guarded ? ', headers={"Authorization": "Bearer KEY"}' : ""}, timeout=60)`,
      "answer.raise_for_status()",
      'for result in answer.json()["results"]:',
      '    print(f\'{result["relevance_score"]:.3f}\', body["documents"][result["index"]][:80])', "",
    ].join("\n"),
  };
}

async function copy(name) {
  fail(null);
  byId("snippet").hidden = true;
  let text;
  try { text = snippets()[name]; } catch (error) { fail(error); return; }
  try {
    await navigator.clipboard.writeText(text); // only over HTTPS and on localhost
    byId(name).textContent = "Copied";
    setTimeout(() => { byId(name).textContent = `Copy as ${name === "curl" ? "curl" : "Python"}`; }, 1500);
  } catch {
    byId("snippet").textContent = text;
    byId("snippet").hidden = false;
    byId("snippet").focus();
    getSelection().selectAllChildren(byId("snippet"));
  }
}

async function look() {
  let health;
  try { health = await call("health"); } catch {
    byId("health").className = "chip bad";
    byId("health").textContent = "unreachable";
    return;
  }
  byId("health").className = `chip ${health.status === "healthy" ? "good" : "bad"}`;
  byId("health").textContent = health.status;
  const facts = health.engine_facts;
  byId("model").textContent = [health.model, health.engine, facts.device, facts.dtype].filter(Boolean).join(" · ");
  byId("demonstration").hidden = !health.demonstration_model;
  byId("explained").textContent = health.demonstration_model
    ? `${health.model} is a demo model. For real work: `
    : `${health.model}, computed by the engine ${health.engine}.`;
  const command = "qwen3-ranker serve --model Qwen/Qwen3-Reranker-0.6B";
  if (health.demonstration_model) byId("explained").append(make("code", "", command));
  if (health.status === "healthy" && first) await openExample(first);
}

function addExamples(label, entries) {
  const group = make("optgroup");
  group.label = label;
  group.append(...entries.map(([id, text]) => {
    const option = make("option", "", text);
    option.value = id;
    return option;
  }));
  byId("demo").append(group);
}

async function examples() {
  const demo = await call("demo");
  guarded = demo.guarded;
  addExamples("Typical gains, then the largest loss", Object.keys(demo.shown).map((id) => [id, demo.queries[id]]));
  addExamples("The other questions", Object.entries(demo.queries).filter(([id]) => !(id in demo.shown)));
  [first] = Object.keys(demo.shown);
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  first = "";
  rank();
  if (narrow) byId("results").scrollIntoView({ behavior: still.matches ? "auto" : "smooth" });
});
byId("form").addEventListener("keydown", (event) => {
  const submits = event.ctrlKey || event.metaKey || (event.target === byId("query") && !event.shiftKey);
  if (event.key !== "Enter" || !submits || event.isComposing) return;
  event.preventDefault();
  byId("form").requestSubmit();
});
byId("demo").addEventListener("change", () => (byId("demo").value ? openExample(byId("demo").value) : emptied()));
byId("query").addEventListener("input", touched);
byId("documents").addEventListener("input", () => {
  source = "";
  if (!chosen) setFormat("auto");
  recognised();
  touched();
});
byId("format").addEventListener("change", () => { setFormat(byId("format").value, true); recognised(); });
byId("other").addEventListener("click", () => { setFormat(byId("other").value, true); recognised(); });
byId("browse").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", () => take(byId("files").files));
byId("curl").addEventListener("click", () => copy("curl"));
byId("python").addEventListener("click", () => copy("python"));
for (const name of ["dragenter", "dragover"]) byId("form").addEventListener(name, (event) => { event.preventDefault(); byId("form").classList.add("over"); });
byId("form").addEventListener("dragleave", (event) => { if (!byId("form").contains(event.relatedTarget)) byId("form").classList.remove("over"); });
byId("form").addEventListener("drop", (event) => {
  event.preventDefault();
  byId("form").classList.remove("over");
  take(event.dataTransfer.files);
});
byId("list").addEventListener("explain", (event) => explain(cards.find(({ item }) => item === event.target)));
byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

byId("editor").open = byId("legend").open = !narrow;
byId("status").textContent = "waiting for the server …";
examples().catch(fail).finally(look);
setInterval(look, 5000);
