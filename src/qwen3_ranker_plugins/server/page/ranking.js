// The list of results: a card for each document, drawn in the order given and moved into the order of the answer.

const byId = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const numbers = new Intl.NumberFormat("en");
let cards = [];
let shown = "";

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// A document's text; a short first line is its title.
function writeText(element, text) {
  const [heading, ...rest] = text.split("\n");
  if (rest.length > 0 && heading.length < 90) element.append(make("strong", "", heading), `\n${rest.join("\n")}`);
  else element.textContent = text;
}

function card(text, index, grade) {
  const item = make("li", grade ? "judged" : "");
  const side = make("div", "side");
  const rank = make("div", "rank", String(index + 1));
  const moved = make("div", "moved");
  side.append(rank, moved);
  const body = make("div", "body");
  const score = make("div", "score");
  const track = make("div", "track");
  const fill = make("div", "fill");
  const value = make("div", "value", "–");
  track.setAttribute("aria-hidden", "true");
  track.append(fill);
  score.append(track, value);
  const content = make("p", "text");
  writeText(content, text);
  const tags = make("div", "tags");
  if (grade) tags.append(make("span", "star", grade === 2 ? "★★ answers the question" : "★ helps"));
  tags.append(make("span", "", `was ${index + 1}`));
  const cut = make("span", "cut");
  tags.append(cut);
  body.append(score, content, tags);
  item.append(side, body);
  return { item, rank, moved, fill, value, content, tags, cut, index };
}

function addFold({ item, tags }) {
  const more = make("button", "", "Show all");
  more.type = "button";
  more.setAttribute("aria-expanded", "false");
  more.addEventListener("click", () => {
    const open = item.classList.toggle("open");
    more.textContent = open ? "Show less" : "Show all";
    more.setAttribute("aria-expanded", String(open));
  });
  tags.append(more);
}

// What each sentence adds to the score of a card, as a highlight of its text. Offsets count code points.
function highlight({ content }, text, sentences) {
  const points = Array.from(text);
  const most = Math.max(...sentences.map((each) => Math.abs(each.contribution)), 1e-6);
  content.replaceChildren(...sentences.map(({ start, end, contribution }) => {
    const mark = make("mark", contribution > 0 ? "speaks" : "against", points.slice(start, end).join(""));
    mark.style.setProperty("--share", `${Math.round(45 * Math.abs(contribution) / most)}%`);
    mark.title = `${contribution > 0 ? "+" : "−"}${Math.abs(contribution).toFixed(2)} to logit(yes) − logit(no)`;
    return mark;
  }), make("span", "cut", points.slice(sentences.at(-1)?.end ?? 0).join("")));
}

function addExplain({ item, tags }) {
  const button = make("button", "why", "Explain");
  button.type = "button";
  button.addEventListener("click", () => item.dispatchEvent(new CustomEvent("explain", { bubbles: true })));
  tags.append(button);
}

// Cards that come into view get a fold if their text is cut. The others are neither laid out nor measured (style.css).
const viewed = new IntersectionObserver((entries) => {
  const seen = new Set(entries.filter((each) => each.isIntersecting).map((each) => each.target));
  const fresh = cards.filter(({ item }) => seen.has(item));
  for (const { item } of fresh) viewed.unobserve(item);
  fresh.forEach(addExplain);
  fresh.filter(({ content }) => content.scrollHeight > content.clientHeight + 2).forEach(addFold);
}, { rootMargin: "300px" });

// Draw the documents: everything is written before anything is measured, so that the browser lays the page out once.
function show(documents, grades = new Map()) {
  shown = JSON.stringify([documents, [...grades]]);
  cards = documents.map((text, index) => card(text, index, grades.get(text) ?? 0));
  const all = document.createDocumentFragment();
  all.append(...cards.map((each) => each.item));
  byId("list").replaceChildren(all);
  byId("list").classList.remove("ranked");
  viewed.disconnect();
  for (const { item } of cards) viewed.observe(item);
  byId("empty").hidden = documents.length > 0;
  for (const id of ["figures", "cut", "quality", "copies"]) byId(id).hidden = true;
  byId("title").textContent = "Documents";
  byId("status").textContent = documents.length ? "in the order they were given" : "";
}

function reorder(answer) {
  const tops = () => new Map(cards.map((each) => [each, each.item.getBoundingClientRect().top]));
  const before = tops();
  const unread = new Map((answer.meta.truncated ?? []).map((each) => [each.index, each.truncated_tokens]));
  const ordered = document.createDocumentFragment();
  answer.results.forEach((result, position) => {
    const each = cards[result.index];
    const steps = each.index - position;
    each.item.classList.toggle("first", position === 0);
    each.rank.textContent = String(position + 1);
    const sign = make("span", "", steps > 0 ? `▲${steps}` : steps < 0 ? `▼${-steps}` : "=");
    sign.setAttribute("aria-hidden", "true");
    each.moved.replaceChildren(sign, make("span", "heard", steps > 0 ? `up ${steps}` : steps < 0 ? `down ${-steps}` : "not moved"));
    each.moved.className = `moved ${steps > 0 ? "up" : steps < 0 ? "down" : ""}`;
    each.value.textContent = result.relevance_score.toFixed(3);
    each.cut.textContent = unread.has(result.index) ? `✂ last ${numbers.format(unread.get(result.index))} tokens not read` : "";
    ordered.append(each.item);
  });
  byId("list").append(ordered);
  byId("list").classList.add("ranked");
  // From where each card was to where it is: first, last, invert, play. Cards that nobody sees do not move.
  const seen = (top) => top > -200 && top < innerHeight + 200;
  for (const [each, top] of still.matches ? [] : tops()) {
    const distance = before.get(each) - top;
    if (distance && (seen(top) || seen(before.get(each)))) {
      each.item.animate([{ transform: `translateY(${distance}px)` }, { transform: "none" }], { duration: 750, easing: "cubic-bezier(.2,.8,.2,1)" });
    }
  }
  requestAnimationFrame(() => answer.results.forEach((result) => {
    cards[result.index].fill.style.transform = `scaleX(${Math.max(0.004, result.relevance_score)})`;
  }));
}

function figures(answer, milliseconds) {
  const usage = answer.usage;
  const shared = usage.prompt_tokens ? Math.round(100 * (1 - usage.computed_tokens / usage.prompt_tokens)) : 0;
  const each = answer.meta.processing_time_ms / Math.max(1, answer.results.length);
  const entries = [
    ["Scoring, in the server", `${numbers.format(Math.round(answer.meta.processing_time_ms))} ms`],
    ["With the network", `${numbers.format(Math.round(milliseconds))} ms`],
    ["Each document", `${each.toFixed(1)} ms`],
    [`Tokens, ${shared} % shared`, numbers.format(usage.computed_tokens)],
  ];
  byId("figures").replaceChildren(...entries.map(([name, value]) => {
    const box = make("div");
    box.append(make("dt", "", name), make("dd", "", value));
    return box;
  }));
  byId("figures").hidden = false;
  const cut = answer.meta.truncated ?? [];
  const tokens = cut.reduce((sum, each) => sum + each.truncated_tokens, 0);
  byId("cut").hidden = cut.length === 0;
  byId("cut").textContent = `${cut.length} of ${answer.results.length} documents were cut: ${numbers.format(tokens)} tokens at their ends were not read.`;
}

// nDCG@10 with gain = grade: `order` are the grades of documents, best rank first; `judged` those of all right ones.
function ndcg(order, judged) {
  const gain = (grades) => grades.slice(0, 10).reduce((sum, grade, place) => sum + grade / Math.log2(place + 2), 0);
  const ideal = gain([...judged].sort((a, b) => b - a));
  return ideal ? gain(order) / ideal : 0;
}

function quality(before, after, judged, reason) {
  const [old, fresh] = [ndcg(before, judged), ndcg(after, judged)];
  const change = fresh - old;
  const value = make("strong", Math.abs(change) < 0.005 ? "" : change > 0 ? "up" : "down", `${old.toFixed(2)} → ${fresh.toFixed(2)}`);
  const found = before.filter(Boolean).length;
  const note = [
    "BM25 → reranked",
    found < judged.length ? `${judged.length - found} of ${judged.length} right passages are not among BM25's ${before.length}` : "",
    reason ? `chosen as the ${reason}` : "",
  ].filter(Boolean).join(" · ");
  byId("quality").replaceChildren(make("span", "name", "nDCG@10"), " ", value, " ", make("span", "note", note));
  byId("quality").hidden = false;
}
