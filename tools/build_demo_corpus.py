"""Split CPython's language reference into the passages of the demo corpus.

Every CPython ships the language reference as plain text in `pydoc_data.topics` (it is what
`help("with")` prints), so the demo needs no download. The text differs between Python versions, and
judgements refer to passages by id. The package therefore ships passages that were made once, on
`SHIPPED_VERSION`. On that version this script reproduces the shipped file byte for byte; other versions
give other passages, to which the shipped judgements do not apply.

    python tools/build_demo_corpus.py OUTPUT_FOLDER

Topics are cut at headings and definitions first, then at paragraphs, but never inside a paragraph or an
example. The wording is kept. The script removes what pydoc's renderer added and what is meaningless
outside of the page: hard line breaks, heading underlines, `*` and `**` emphasis, the rules of tables and
"See also" lists. Footnotes move to the text that refers to them and lose their numbers.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_changes
from pathlib import Path
from pydoc_data.topics import topics

SHIPPED_VERSION = "3.11.7"

TARGET_WORDS = 105
SOFT_MAXIMUM_WORDS = 165
SOFT_MINIMUM_WORDS = 40
SHORT_DEFINITION_WORDS = 25  # below this a definition joins its neighbour if the two fit the target
CUT_MID_THOUGHT_COST = 0.4
MINIMUM_WORDS = 15  # anything shorter is a heading over a cross-reference and answers nothing

SHINGLE_WORDS = 5
DUPLICATE_OVERLAP = 0.6

ALIAS_TOPICS = frozenset({"else"})  # the text of "if" under a second name

HEADING_UNDERLINE = re.compile(r"([*=\-~^])\1{2,}")
FOOTNOTES_HEADING = "-[ Footnotes ]-"
FOOTNOTES = "Footnotes"
ADMONITIONS = frozenset({"Note:", "Warning:", "Important:", "See also:"})
# An indented body that is no example: a list, a table, or terms in quotes over their descriptions.
INDENTED_PROSE = re.compile(r"(\*|\d+\.|\[\d+\]) |\+--|\"[^\n]*\n +\S")
LIST_MARKER = re.compile(r"(?P<marker>\*|\d+\.|\[\d+\]) +(?=\S)")
# What stands over an indented body and is not the lead-in of an example ("is equivalent to").
SIGNATURE = re.compile(r"(?!are |is |was )[a-z!](?!.*[.,:;]$)(?!.* (to|like|if)$).*")
FOOTNOTE_REFERENCE = re.compile(r"\s+\[(\d+)\](?=[\s.,;:)]|$)")
EMPHASIS = re.compile(r"(?<![\w\"*])(\*\*?)(?=[\w(“‘])([^*\"]*[\w.:!?’”)])\1(?=th\b|[^\w\"*]|$)")
# Openings that mean nothing without the text before; a cut there is allowed, but costs.
OPENS_MID_THOUGHT = re.compile(r"\s|(\*|\d+\.|[IV]+\.) |(Thus|Otherwise|Also|However|This|These|Such|That|It|They)\b")


@dataclass(frozen=True)
class Passage:
    """One document of the corpus."""

    passage_id: str
    title: str
    text: str
    topic: str
    section: str

    def to_json(self) -> str:
        """One line of BEIR's `corpus.jsonl`."""
        metadata = {"topic": self.topic, "section": self.section}
        record = {"_id": self.passage_id, "title": self.title, "text": self.text, "metadata": metadata}
        return json.dumps(record, ensure_ascii=False)


@dataclass(frozen=True)
class Piece:
    """A paragraph, a list item, a table row or an example: what is never cut."""

    text: str
    is_example: bool = False
    is_signature: bool = False

    @property
    def num_words(self) -> int:
        return len(self.text.split())

    def stays_with(self, following: Piece) -> bool:
        """Whether the two are one thought: an example and its lead-in, a sentence around an example."""
        return (
            self.is_signature
            or following.is_example
            or self.text.endswith((":", ","))
            or following.text.lstrip()[0].islower()
            or following.text.lstrip().startswith(("Changed in version", "New in version", "Deprecated since"))
        )


@dataclass(frozen=True)
class Block:
    """Running text of one section, or definitions; passages never cross its borders."""

    section: tuple[str, ...]
    pieces: tuple[Piece, ...]
    signatures: tuple[str, ...] = ()

    @property
    def num_words(self) -> int:
        return sum(piece.num_words for piece in self.pieces)

    @property
    def title(self) -> str:
        if not self.signatures:
            return ": ".join(self.section[-2:])
        names = ", ".join(short_signature(signature) for signature in self.signatures[:4])
        return f"{self.section[-1]}: {names}" + (", …" if len(self.signatures) > 4 else "")


@dataclass(frozen=True)
class Element:
    """What stands at the left margin, with the more indented lines that belong to it.

    kind is one of paragraph, example, table, item, definition, term, admonition.
    """

    kind: str
    head: tuple[str, ...]
    body: tuple[str, ...] = ()


def build_corpus() -> list[Passage]:
    """All passages of the running interpreter's topics, each text once, ordered by topic.

    Topics contain one another ("compound" holds "with"), so the shortest topic goes first and a
    passage is named after the most specific topic that holds it. Within one topic nothing is a
    duplicate: `str.partition()` and `str.rpartition()` read alike and mean different things.
    """
    passages: list[Passage] = []
    seen: set[tuple[str, ...]] = set()
    for topic in sorted(topics.keys() - ALIAS_TOPICS, key=lambda name: (len(topics[name]), name)):
        ordinal = 0
        seen_here: set[tuple[str, ...]] = set()
        for block in join_short_definitions(topic_blocks(topics[topic])):
            for text in pack(block.pieces):
                shingles = word_shingles(text)
                is_duplicate = len(shingles & seen) >= DUPLICATE_OVERLAP * len(shingles)
                if is_duplicate or len(text.split()) < MINIMUM_WORDS:
                    continue
                seen_here |= shingles
                ordinal += 1
                passages.append(Passage(f"{topic}-{ordinal}", block.title, text, topic, " > ".join(block.section)))
        seen |= seen_here
    return sorted(passages, key=lambda passage: passage.topic)


def topic_blocks(text: str) -> Iterator[Block]:
    sections = list(topic_sections(text))
    # pydoc prints all footnotes of a chapter under each of its topics; only those referred to are used.
    footnotes = {
        element.head[0].strip("[]"): tuple(element_pieces(with_changes(element, head=("",))))
        for section, lines in sections
        if section[-1:] == (FOOTNOTES,)
        for element in section_elements(lines)
    }
    for section, lines in sections:
        if section[-1:] != (FOOTNOTES,):
            for block in section_blocks(section, lines):
                yield with_changes(block, pieces=tuple(with_footnotes(block.pieces, footnotes)))


def with_footnotes(pieces: Sequence[Piece], footnotes: Mapping[str, Sequence[Piece]]) -> Iterator[Piece]:
    """The pieces without footnote numbers, each followed by the footnotes it refers to."""
    for piece in pieces:
        if piece.is_example:
            yield piece
        else:
            yield with_changes(piece, text=FOOTNOTE_REFERENCE.sub("", piece.text))
            for number in FOOTNOTE_REFERENCE.findall(piece.text):
                yield from footnotes.get(number, ())


def topic_sections(text: str) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """(path of headings, lines) of every section; a new underline character opens a deeper level."""
    lines = text.splitlines()
    levels: list[str] = []
    path: tuple[str, ...] = ()
    body: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        underlined = HEADING_UNDERLINE.fullmatch(following) and len(following) == len(line)
        if underlined and not line.startswith(" "):
            yield path, body
            if following[0] not in levels:
                levels.append(following[0])
            path, body = (*path[: levels.index(following[0])], plain_prose(line)), []
        elif line == FOOTNOTES_HEADING:
            yield path, body
            path, body = (*path[:1], FOOTNOTES), []
        elif not HEADING_UNDERLINE.fullmatch(line):
            body.append(line)
    yield path, body


def section_blocks(section: tuple[str, ...], lines: Sequence[str]) -> Iterator[Block]:
    """Running text and definitions in order; a class that documents its methods gives one each."""
    running_text: list[Piece] = []
    for element in section_elements(lines):
        if element.kind == "definition":
            if running_text:
                yield Block(section, tuple(running_text))
                running_text = []
            yield from definition_blocks(section, element)
        else:
            running_text += element_pieces(element)
    if running_text:
        yield Block(section, tuple(running_text))


def definition_blocks(section: tuple[str, ...], definition: Element) -> Iterator[Block]:
    signature = Piece("\n".join(definition.head), is_signature=True)
    for position, block in enumerate(section_blocks(section, definition.body)):
        if position == 0 and not block.signatures:
            yield Block(section, (signature, *block.pieces), definition.head)
        else:
            yield block


def section_elements(lines: Sequence[str]) -> Iterator[Element]:
    """Elements at the left margin of `lines`; the lines of their bodies come dedented."""
    position = 0
    while position < len(lines):
        line = lines[position]
        start = position
        if not line.strip():
            position += 1
        elif line.startswith(" "):
            position = end_of_indented(lines, position, 1)
            body = dedented(lines[start:position])
            if INDENTED_PROSE.match("\n".join(body)):
                yield from section_elements(body)
            else:
                yield Element("example", (), body)
        elif line.startswith("+--"):
            while position < len(lines) and lines[position].startswith(("+", "|")):
                position += 1
            yield Element("table", (), tuple(lines[start:position]))
        elif item := LIST_MARKER.match(line):
            position = end_of_indented(lines, position + 1, item.end())
            first = " " * item.end() + line[item.end() :]
            yield Element("item", (item["marker"],), dedented([first, *lines[start + 1 : position]]))
        else:
            element, position = element_of_text(lines, position)
            yield element


def element_of_text(lines: Sequence[str], start: int) -> tuple[Element, int]:
    """The element that opens with plain text at `start`, and where the next one may begin."""
    position = start
    while position < len(lines) and lines[position].strip() and not lines[position].startswith(" "):
        position += 1
    head = tuple(lines[start:position])
    end = end_of_indented(lines, position, 1)
    body = dedented(lines[position:end])
    if body and head[0] in ADMONITIONS:
        return Element("admonition", head, body), end
    if body and lines[position].startswith(" "):
        return Element("term", head, body), end
    if body and all(SIGNATURE.fullmatch(text) for text in head):
        return Element("definition", head, body), end
    # What is indented below a paragraph is an element of its own: an example or a list.
    return Element("example", (), head) if head[0].startswith(">>>") else Element("paragraph", head), position


def end_of_indented(lines: Sequence[str], position: int, indent: int) -> int:
    """Where the run of blank lines and lines indented by at least `indent` ends."""
    while position < len(lines) and not lines[position][:indent].strip():
        position += 1
    return position


def dedented(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(textwrap.dedent("\n".join(lines)).strip("\n").splitlines())


def element_pieces(element: Element) -> Iterator[Piece]:
    """What an element contributes to running text; nothing for "See also"."""
    text = plain_prose(" ".join(element.head))
    if text.startswith("See also:"):
        return
    if element.kind == "paragraph":
        yield Piece(text)
    elif element.kind == "example":
        yield Piece(textwrap.indent("\n".join(element.body), "    "), is_example=True)
    elif element.kind == "table":
        yield from map(Piece, table_rows(element.body))
    else:
        separator = ": " if element.kind == "term" and not text.endswith(":") else " "
        nested = [piece for inner in section_elements(element.body) for piece in element_pieces(inner)]
        yield with_changes(nested[0], text=f"{text}{separator}{nested[0].text}".strip())
        indent = "  " if element.kind == "item" else ""
        yield from (with_changes(piece, text=textwrap.indent(piece.text, indent)) for piece in nested[1:])


def table_rows(lines: Sequence[str]) -> Iterator[str]:
    """`cell: cell: cell` per row, empty cells and the column titles left out."""
    row: list[list[str]] = []
    past_column_titles = not any(line.startswith("|==") for line in lines)
    for line in lines:
        if line.startswith(("+--", "|==")):
            cells = [plain_prose(" ".join(cell)) for cell in row]
            if past_column_titles and any(cells):
                yield ": ".join(cell for cell in cells if cell)
            past_column_titles = past_column_titles or line.startswith("|==")
            row = []
        else:
            # Only a bar at a column border separates cells; the operator "|" is a cell's content.
            cells_of_line = re.split(r"\s\|(?=\s|$)", line.removeprefix("|").rstrip())[:-1]
            row = row or [[] for _ in cells_of_line]
            for cell, part in zip(row, cells_of_line, strict=True):
                cell.append(part.strip())


def join_short_definitions(blocks: Iterator[Block]) -> list[Block]:
    """Neighbouring definitions of a line or two become one block."""
    joined: list[Block] = []
    for block in blocks:
        previous = joined[-1] if joined else None
        if (
            previous
            and previous.section == block.section
            and previous.signatures
            and block.signatures
            and min(previous.num_words, block.num_words) < SHORT_DEFINITION_WORDS
            and previous.num_words + block.num_words <= TARGET_WORDS
        ):
            signatures = previous.signatures + block.signatures
            joined[-1] = Block(block.section, previous.pieces + block.pieces, signatures)
        else:
            joined.append(block)
    return joined


def pack(pieces: Sequence[Piece]) -> list[str]:
    """Cut a block into texts as close to the target length as whole pieces allow.

    The cheapest of all ways to cut, by dynamic programming from the front: filling up greedily would
    leave stubs at the end.
    """
    groups: list[list[Piece]] = []
    for piece in pieces:
        if groups and groups[-1][-1].stays_with(piece):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    num_words = [sum(piece.num_words for piece in group) for group in groups]
    cut_costs = [CUT_MID_THOUGHT_COST * bool(OPENS_MID_THOUGHT.match(group[0].text)) for group in groups]

    cheapest: list[tuple[float, int]] = [(0.0, 0)]  # of the first n groups: cost, start of the last cut
    for end in range(1, len(groups) + 1):
        ways = (
            (cheapest[start][0] + cut_costs[start] + length_cost(sum(num_words[start:end])), start)
            for start in range(end)
        )
        cheapest.append(min(ways))

    texts: list[str] = []
    end = len(groups)
    while end:
        start = cheapest[end][1]
        lines = (piece.text for group in groups[start:end] for piece in group)
        texts.append(textwrap.dedent("\n".join(lines)))
        end = start
    return texts[::-1]


def length_cost(num_words: int) -> float:
    """Squared relative distance from the target, and a fine outside the soft bounds."""
    cost = (num_words / TARGET_WORDS - 1) ** 2
    return cost + 2.0 * (num_words < SOFT_MINIMUM_WORDS) + 1.0 * (num_words > SOFT_MAXIMUM_WORDS)


def plain_prose(text: str) -> str:
    """One line without emphasis; a word broken at its hyphen is rejoined."""
    text = " ".join(text.split())
    text = re.sub(r"(?<=\w)- (?=[a-z])", "-", text)
    return EMPHASIS.sub(r"\2", text)


def short_signature(signature: str) -> str:
    """For titles: `class pdb.Pdb(completekey='tab', …)` -> `pdb.Pdb()`."""
    signature = re.sub(r"^(class|classmethod|static) ", "", signature)
    return re.sub(r"\(.*\)$", "()", signature) if len(signature) > 30 else signature


def word_shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    length = min(SHINGLE_WORDS, len(words))
    return frozenset(tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def write_corpus(folder: Path) -> list[Passage]:
    """Write `corpus.jsonl` under `folder` and return what was written."""
    passages = build_corpus()
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(passage.to_json() + "\n" for passage in passages)
    (folder / "corpus.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    return passages


def main() -> None:
    description, *_ = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help="where to write corpus.jsonl")
    folder: Path = parser.parse_args().folder

    passages = write_corpus(folder)
    lengths = sorted(len(passage.text.split()) for passage in passages)
    num_topics = len({passage.topic for passage in passages})
    print(f"{len(passages)} passages from {num_topics} of {len(topics)} topics -> {folder / 'corpus.jsonl'}")
    print(f"words per passage: {lengths[0]} to {lengths[-1]}, median {lengths[len(lengths) // 2]}")
    running = platform.python_version()
    if running == SHIPPED_VERSION:
        print(f"Python {running}, with which the shipped corpus was made: expect an identical file.")
    else:
        print(
            f"Python {running}; the shipped corpus was made with {SHIPPED_VERSION}. "
            "Other versions give other passages: the shipped judgements do not apply to this file."
        )


if __name__ == "__main__":
    main()
