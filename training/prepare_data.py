"""Read the train folder and the free texts; write what the later stages train and select on.

Writes into --out: `texts.jsonl.gz` (passages), `queries.jsonl.gz` (labelled and pseudo queries), and
`heldout/<source>.jsonl.gz` (queries of passages that training never sees, with their BM25 top 100).
"""

import argparse
import gzip
import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from training.free_text import FURTHER_PACKAGES, SCIENCE_PACKAGES
from training.languages import ENDINGS, QUESTIONS, UNSPACED_TOKENS, translated
from training.texts import BM25, STOP_WORDS, TERM, UNSPACED_CHARACTER, sentences, text_length

Json = dict[str, Any]

HELD_OUT_SHARE = 0.05
HELD_OUT_QUERIES = 150
LABELLED_CAP = {"medquad": 6000, "tldr": 14000}
FREE_CAP = {
    **dict.fromkeys((*SCIENCE_PACKAGES, *FURTHER_PACKAGES), 10000),
    "linux-doc-6.1": 20000,
    "dict-gcide": 30000,
    "wordnet-base": 40000,
    "libreoffice-help-en-us": 8000,
}
TRANSLATED_CAP = {"manpages": 5000, "libreoffice": 4000, "debian": 4500}  # of a source in another language
DICTIONARIES = ("dict-", "wordnet")
FRAGMENTS = "fragment"  # source of texts that answer nothing
FRAGMENT_SHARE = 0.06
# What pages carry around their content; texts of two to four of them answer nothing.
BOILERPLATE = (
    "All rights reserved.", "Click here to read more.", "Sign in to continue.", "We use cookies on this site.",
    "Terms of use and privacy policy.", "This page was last modified a year ago.", "Back to top.", "Share this page.",
    "Skip to main content.", "Your comment is awaiting moderation.", "Subscribe to our newsletter.", "Page not found.",
    "Related articles", "Read the full article", "Table of contents", "Home | About | Contact", "Loading, please wait.",
    "Find the best answers to your questions here.", "What is this? Learn more about it today.", "See also the index.",
    "Enter your search words above.", "No results were found for this query.", "Download the free application now.",
    "Was this answer helpful? Yes or no.", "Ask a question and get an answer from an expert.", "Next page, last page",
    "Please enable JavaScript to view this page.", "Copyright by the authors.", "Add to cart. Free shipping today.",
    "Definition, meaning, synonyms and examples.", "The answer depends on many things.", "Photo: archive.",
    "Alle Rechte vorbehalten.", "Mehr lesen", "Tous droits réservés.", "Lire la suite",
    "Todos los derechos reservados.", "Leer más",
    "Все права защищены.", "Читать далее", "Войдите, чтобы продолжить.",  # noqa: RUF001
    "版权所有。", "点击此处阅读更多。", "続きを読む",
)  # fmt: skip
# How people word what they want from a library.
REQUESTS = (
    "I am interested in {}.",
    "I am looking for articles on {}, and on {} as far as it concerns them.",
    "Find all discussions of {}.",
    "What is known about {}?",
    "what articles exist which deal with {}",
    "papers on {}; {}",
    "Descriptions of {} are wanted, with or without {}. Of particular interest is {}.",
    "how does {} depend on {}",
    "has anyone investigated {} and {}",
    "{}, especially {}. I would rather see {} than anything on the general problem.",
    "what are the problems associated with {}",
)
DICTIONARY_FORMS = (
    "{}", "{}", "what is {}", "{} definition", "meaning of {}", "define {}", "what does {} mean", "definition of {}",
)  # fmt: skip
MAX_WORDS = 330


def read_jsonl(path: Path) -> Iterator[Json]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def write_jsonl(path: Path, rows: Iterable[Json]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=6) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def share(key: str) -> float:
    """A number in [0, 1) that depends on the text alone, so the split never moves."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32


def shorten(text: str) -> str:
    """At most MAX_WORDS words or Han characters; no stage uses more."""
    if text_length(text) <= MAX_WORDS:
        return text
    words = text.split(" ")
    return " ".join(words[:MAX_WORDS])[: MAX_WORDS * 8]


class Collection:
    """Numbered passages without duplicates, and the queries about them."""

    def __init__(self) -> None:
        self.texts: list[Json] = []
        self.queries: list[Json] = []
        self._numbers: dict[str, int] = {}

    def add_text(self, text: str, lang: str, source: str, title: str = "") -> int:
        text = shorten(text)
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append({"text": text, "lang": lang, "source": source, "title": title})
        return self._numbers[text]

    def add_query(self, query: str, positives: list[int], kind: str, lang: str, source: str) -> None:
        row = {"query": query.strip(), "positives": positives, "kind": kind, "lang": lang, "source": source}
        self.queries.append(row)


def add_labelled(collection: Collection, path: Path, rng: random.Random) -> None:
    rows = list(read_jsonl(path))
    rng.shuffle(rows)
    source = path.name.removesuffix(".jsonl.gz")
    for row in rows[: LABELLED_CAP.get(source.split("_")[0], len(rows))]:
        if "docs" in row:
            numbers = [collection.add_text(doc["text"], "en", source) for doc in row["docs"]]
            labels = [doc.get("label", doc.get("rel", 0)) for doc in row["docs"]]
            positives = [number for number, label in zip(numbers, labels, strict=True) if label]
        else:
            positives = [collection.add_text(row["positive"], row["lang"], source)]
        collection.add_query(row["query"], positives, "labelled", row.get("lang", "en"), source)


def add_free(collection: Collection, path: Path, rng: random.Random) -> None:
    by_source: dict[str, list[Json]] = defaultdict(list)
    for row in read_jsonl(path):
        by_source[row["source"]].append(row)
    for source, rows in by_source.items():
        rng.shuffle(rows)
        foreign = translated(rows[0]["lang"])
        most = TRANSLATED_CAP[source.split("-")[0]] if foreign else FREE_CAP.get(source, len(rows))
        for row in rows[:most]:
            title, text, lang = row["title"], row["text"], row["lang"]
            dictionary = source.startswith(DICTIONARIES)
            if rng.random() < 0.5:
                number = collection.add_text(text, lang, source)
                form = rng.choice(DICTIONARY_FORMS) if dictionary else "{}"
                collection.add_query(form.format(title), [number], "title", lang, source)
            else:
                collection.add_text(f"{title}{': ' if dictionary else '. '}{text}", lang, source, title)


def keywords(text: str, rng: random.Random) -> str:
    """Two to six content words of a passage, rarely in their order."""
    words = list(dict.fromkeys(match[0] for match in TERM.finditer(text)))
    if any(UNSPACED_CHARACTER.match(word) for word in words[:20]):
        pieces = [word[i : i + 4] for word in words if len(word) > 3 for i in range(0, len(word) - 3, 3)]
    else:
        pieces = [word for word in words if len(word) > 2 and word.lower() not in STOP_WORDS]
    if len(pieces) < 2:
        return ""
    chosen = rng.sample(pieces, min(len(pieces), rng.randint(2, 6)))
    return " ".join(chosen if rng.random() < 0.5 else [word for word in pieces if word in chosen])


def wordy_request(text: str, title: str, rng: random.Random) -> str:
    """A request of up to 80 words: sentences of a passage in a row, or its words in a sentence of ours; or nothing."""
    if rng.random() < 0.5:
        whole = sentences(text)
        enough = rng.randint(20, 60)
        start = rng.randrange(len(whole))
        request = whole[start]
        for sentence in whole[start + 1 :]:
            if text_length(request) + text_length(sentence) > 80:
                break
            request += " " + sentence
            if text_length(request) > enough:
                break
        return request if 20 <= text_length(request) <= 80 else ""
    form = rng.choice(REQUESTS)
    parts = [keywords(text, rng) for _ in range(form.count("{}"))]
    if title and rng.random() < 0.5:
        parts[0] = title
    return form.format(*parts) if all(parts) else ""


def question(text: str, lang: str, rng: random.Random) -> str:
    """A question in another language: how one begins there, and more than half of a sentence's words in a row."""
    usable = [s for s in sentences(text) if 5 <= text_length(s) <= 40]
    if not usable:
        return ""
    sentence = rng.choice(usable)
    if lang in ENDINGS:
        parts = UNSPACED_TOKENS.findall(sentence)
        return "".join(rng.sample(parts, min(len(parts), rng.randint(1, 2)))) + rng.choice(ENDINGS[lang])
    words = [word for word in sentence.rstrip(".!?;:").split() if rng.random() < rng.choice((0.5, 0.7, 0.9))][:14]
    return f"{rng.choice(QUESTIONS[lang])} {' '.join(words)}?" if len(words) > 1 else ""


def add_translated(collection: Collection, rng: random.Random) -> None:
    """Queries about texts in other languages: key words, sentences and questions."""
    for number, row in enumerate(list(collection.texts)):
        if not translated(row["lang"]) or text_length(row["text"]) < 12:
            continue
        for _ in range(2):
            kind = rng.choice(("keywords", "sentence", "request"))
            query = ""
            if kind == "keywords":
                query = keywords(row["text"], rng)
            elif kind == "request" and (row["lang"] in QUESTIONS or row["lang"] in ENDINGS):
                query = question(row["text"], row["lang"], rng)
            elif usable := [s for s in sentences(row["text"]) if 4 <= text_length(s) <= 30]:
                query, kind = rng.choice(usable), "sentence"
            if query:
                collection.add_query(query, [number], kind, row["lang"], row["source"])


def add_fragments(collection: Collection, rng: random.Random) -> None:
    """Texts too short to answer anything, which share words with queries: titles, beginnings, other queries."""
    for row in list(collection.texts):
        if rng.random() < FRAGMENT_SHARE:
            words = row["text"].split()
            start = rng.randrange(max(1, len(words) - 3))
            piece = row["title"] or " ".join(words[start : start + rng.randint(2, 6)])
            collection.add_text(piece[:60], row["lang"], FRAGMENTS)
    for query in rng.sample(collection.queries, len(collection.queries) // 25):
        if text_length(query["query"]) < 12:
            collection.add_text(query["query"], query["lang"], FRAGMENTS)
    for _ in range(len(collection.texts) // 80):
        collection.add_text(" ".join(rng.sample(BOILERPLATE, rng.randint(2, 4))), "en", FRAGMENTS)


def add_pseudo(collection: Collection, rng: random.Random, requests: bool) -> None:
    """Key-word and sentence queries, and wordy ones; the teacher, not a label, says what they match."""
    for number, row in enumerate(list(collection.texts)):
        if text_length(row["text"]) < 18 or translated(row["lang"]):
            continue
        for _ in range(1 if row["lang"] == "en" else 2 if row["source"].startswith("manpages") else 4):
            kind = rng.choice(("keywords", "sentence", "none") if row["lang"] == "en" else ("keywords", "sentence"))
            if kind == "keywords" and (query := keywords(row["text"], rng)):
                collection.add_query(query, [number], kind, row["lang"], row["source"])
            elif kind == "sentence":
                usable = [s for s in sentences(row["text"]) if 5 <= text_length(s) <= 30]
                if usable:
                    collection.add_query(rng.choice(usable), [number], kind, row["lang"], row["source"])
        wanted = requests and row["lang"] == "en" and rng.random() < 0.4
        if wanted and (request := wordy_request(row["text"], row["title"], rng)):
            collection.add_query(request, [number], "request", "en", row["source"])


def heldout_lists(collection: Collection, held: set[int], rng: random.Random) -> Iterator[tuple[str, list[Json]]]:
    """For each labelled source: held-out queries with the BM25 top 100 of all its passages."""
    for source in sorted({q["source"] for q in collection.queries}):
        numbers = [n for n, row in enumerate(collection.texts) if row["source"] == source]
        queries = [q for q in collection.queries if q["source"] == source and held.intersection(q["positives"])]
        rng.shuffle(queries)
        index = BM25(collection.texts[n]["text"] for n in numbers)
        rows = []
        for serial, query in enumerate(queries[:HELD_OUT_QUERIES]):
            docs = [
                {"docid": str(numbers[i]), "text": collection.texts[numbers[i]]["text"], "rank": rank,
                 "rel": int(numbers[i] in query["positives"])}
                for rank, i in enumerate(index.top(query["query"], 100), 1)
            ]  # fmt: skip
            rows.append(
                {"qid": str(serial), "query": query["query"], "docs": docs, "all_rels": [1] * len(query["positives"])}
            )
        if rows:
            yield source, rows


def prepare(train: Path, free: list[Path], out: Path, seed: int, *, requests: bool = False) -> None:
    rng = random.Random(seed)
    collection = Collection()
    for path in sorted(train.glob("*.jsonl.gz")):
        add_labelled(collection, path, rng)
    # A question about a held-out passage must not be trained on with another passage of the same text.
    held = {n for n, row in enumerate(collection.texts) if share(row["text"]) < HELD_OUT_SHARE}
    if len(collection.texts) < 100:
        held = set(range(0, len(collection.texts), 5))
    for source, rows in heldout_lists(collection, held, rng):
        write_jsonl(out / "heldout" / f"{source}.jsonl.gz", rows)
        print(f"held out {source:32} {len(rows)} queries")
    collection.queries = [q for q in collection.queries if not held.intersection(q["positives"])]
    for path in free:
        add_free(collection, path, rng)
    add_pseudo(collection, rng, requests)
    add_translated(collection, rng)
    add_fragments(collection, rng)
    kept = [n for n in range(len(collection.texts)) if n not in held]
    renumbered = {old: new for new, old in enumerate(kept)}
    queries = [
        {**q, "positives": [renumbered[p] for p in q["positives"]]}
        for q in collection.queries
        if not held.intersection(q["positives"]) and re.search(r"\w", q["query"])
    ]
    write_jsonl(out / "texts.jsonl.gz", (collection.texts[n] for n in kept))
    write_jsonl(out / "queries.jsonl.gz", queries)
    kinds: dict[tuple[str, str], int] = defaultdict(int)
    for query in queries:
        kinds[query["lang"], query["kind"]] += 1
    print(f"{len(kept)} texts, {len(queries)} queries: {dict(kinds)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, required=True, help="folder of labelled pairs (*.jsonl.gz)")
    parser.add_argument("--free-text", type=Path, nargs="*", default=[], help="outputs of training.free_text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", action="store_true", help="wordy queries too, of up to 80 words")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    prepare(arguments.train, arguments.free_text, arguments.out, arguments.seed, requests=arguments.requests)


if __name__ == "__main__":
    main()
