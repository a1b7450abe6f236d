"""Write two labelled sets of long documents from the demonstration corpus, for `qwen3-ranker bench quality`.

`sections/`, in BEIR's format: whole sections of the Python language reference instead of their passages. The grade of a
section is the highest grade of its passages.

`needles.jsonl`: a list of candidates for each question, built like MLDR. One candidate contains a passage that answers
the question, at a random position among passages that do not; the others contain only passages that do not. A model can
rank these documents correctly only if it reads as far as the answer.

    python benchmarks/long_document_sets.py FOLDER
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from qwen3_ranker_plugins.data.demo import DemoCorpus, load_demo_corpus

#: Candidates of a question, and passages of each: some 3,000 tokens.
CANDIDATES = 8
PASSAGES = 18


def write_sections(folder: Path, corpus: DemoCorpus) -> None:
    """Whole sections, as a BEIR folder."""
    sections: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    for each in corpus.documents.values():
        name = each.document_id.rpartition("-")[0]
        titles.setdefault(name, each.title.partition(":")[0])
        sections.setdefault(name, []).append(each.text)
    grades: dict[tuple[str, str], int] = {}
    for query_id, judged in corpus.qrels.items():
        for document_id, grade in judged.items():
            key = query_id, document_id.rpartition("-")[0]
            grades[key] = max(grade, grades.get(key, 0))
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    documents = [{"_id": name, "title": titles[name], "text": "\n\n".join(texts)} for name, texts in sections.items()]
    queries = [{"_id": query_id, "text": text} for query_id, text in corpus.queries.items()]
    for name, records in (("corpus", documents), ("queries", queries)):
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    judgements = "".join(f"{query_id}\t{name}\t{grade}\n" for (query_id, name), grade in grades.items())
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judgements}", encoding="utf-8")


def write_needles(path: Path, corpus: DemoCorpus, seed: int) -> None:
    """An answer at a random place of one of several long documents."""
    choose = random.Random(seed)
    lines = []
    for query_id, query in corpus.queries.items():
        judged = corpus.qrels.get(query_id, {})
        answers = [document_id for document_id, grade in judged.items() if grade == 2]
        if not answers:
            continue
        of_sections = {document_id.rpartition("-")[0] for document_id in judged}
        others = [
            each.content for each in corpus.documents.values() if each.document_id.rpartition("-")[0] not in of_sections
        ]
        filler = choose.sample(others, CANDIDATES * PASSAGES)
        documents = [filler[start : start + PASSAGES] for start in range(0, len(filler), PASSAGES)]
        answer = corpus.documents[choose.choice(answers)].content
        documents[0][choose.randrange(PASSAGES)] = answer
        found = [
            {"docid": f"{query_id}-{number}", "text": "\n\n".join(passages), "rel": 2 if answer in passages else 0}
            for number, passages in enumerate(documents)
        ]
        choose.shuffle(found)
        lines.append(json.dumps({"qid": query_id, "query": query, "docs": found}, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Write both sets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the places of answers")
    arguments = parser.parse_args()
    corpus = load_demo_corpus()
    write_sections(arguments.folder / "sections", corpus)
    write_needles(arguments.folder / "needles.jsonl", corpus, arguments.seed)
    print(f"written to {arguments.folder}")


if __name__ == "__main__":
    main()
