"""Turn free Debian packages into titled passages for training.

The labelled pairs of the train folder cover few subjects. Dictionaries, manuals and package
descriptions add vocabulary and passage styles; every source is free to redistribute, and only its
statistics (weights) leave this machine. Run: `python -m training.free_text --out texts.jsonl.gz`.
"""

import argparse
import gzip
import html
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from training import languages
from training.texts import HAN_CHARACTER, text_length

Record = dict[str, str]

# Debian package -> glob of the files read from it, licence.
# Computing, mathematics, engineering.
SCIENCE_PACKAGES = {
    "racket-doc": ("**/racket/*/*.html", "Apache-2.0 or MIT"),
    "erlang-doc": ("**/erlang-doc/**/*.html", "Apache-2.0"),
    "python-scipy-doc": ("**/html/**/*.html", "BSD-3-Clause"),
    "python-sklearn-doc": ("**/html/modules/*.html", "BSD-3-Clause"),
    "python-statsmodels-doc": ("**/html/*.html", "BSD-3-Clause"),
    "python-astropy-doc": ("**/html/[a-z]*/**/*.html", "BSD-3-Clause"),
    "maxima-doc": ("**/html/*.html", "GPL-2+"),
    "llvm-14-doc": ("**/html/**/*.html", "Apache-2.0 with LLVM exception"),
    "libboost1.81-doc": ("**/html/boost*/**/*.html", "BSL-1.0"),
    "postgis-doc": ("**/*.html", "CC BY-SA 3.0"),
    "r-doc-html": ("**/*.html", "GPL-2+"),
}
# More prose, and more subjects.
FURTHER_PACKAGES = {
    "anarchism": ("**/html/*.html", "GPL-2"),
    "apache2-doc": ("**/manual/en/**/*.html", "Apache-2.0"),
    "calculix-ccx-doc": ("**/ccx/*.html", "GPL-2"),
    "debian-history": ("**/docs/*.en.html", "GPL-2+"),
    "exim4-doc-html": ("**/spec_html/*.html", "GPL-2+"),
    "grass-doc": ("**/html/*.html", "GPL-2+"),
    "kicad-doc-en": ("**/help/en/*.html", "GPL-3+"),
    "neutron-doc": ("**/html/**/*.html", "Apache-2.0"),
    "nova-doc": ("**/html/**/*.html", "Apache-2.0"),
    "postfix-doc": ("**/html/*.html", "IPL-1.0 or EPL-2.0"),
    "python-django-doc": ("**/html/[hirtf]*/**/*.html", "BSD-3-Clause"),
    "python-sqlalchemy-doc": ("**/html/[a-z]*/*.html", "MIT"),
    "python-sympy-doc": ("**/html/*/**/*.html", "BSD-3-Clause"),
    "sagemath-doc": ("**/html/en/**/*.html", "GPL-2+ or CC BY-SA 3.0"),
    "swi-prolog-doc": ("**/doc/*/*.html", "BSD-2-Clause"),
    "valgrind": ("**/html/*.html", "GPL-2+"),
}
CHINESE_PACKAGES = {
    "libreoffice-help-zh-cn": ("**/text/**/*.html", "MPL-2.0"),
    "libreoffice-help-zh-tw": ("**/text/**/*.html", "MPL-2.0"),
    "debian-reference-zh-cn": ("**/*.zh-cn.html", "GPL-2+"),
    "debian-reference-zh-tw": ("**/*.zh-tw.html", "GPL-2+"),
    "debian-faq-zh-cn": ("**/*.html", "GPL-2+"),
    "maint-guide-zh-cn": ("**/*.html", "GPL-2+"),
    "debian-edu-doc-zh-cn": ("**/*.html", "GPL-2+"),
}
HTML_PACKAGES = {
    "postgresql-doc-15": ("**/html/*.html", "PostgreSQL"),
    "gnucash-docs": ("**/help/C/gnucash-*/*.xml", "GFDL-1.1+"),
    "debian-handbook": ("**/html/en-US/*.html", "GPL-2+ or CC BY-SA 3.0"),
    "octave-doc": ("**/octave.html/*.html", "GPL-3+"),
    "gimp-help-en": ("**/help/en/*.html", "GFDL-1.2+"),
    "sqlite3-doc": ("**/sqlite3/*.html", "public domain"),
    "git-doc": ("**/*.html", "GPL-2"),
    "debian-policy": ("**/*.html", "GPL-2+"),
    "developers-reference": ("**/*.html", "GPL-2+"),
    "linux-doc-6.1": ("**/html/**/*.html", "GPL-2"),
    "libreoffice-help-en-us": ("**/text/**/*.html", "MPL-2.0"),
    **SCIENCE_PACKAGES,
    **FURTHER_PACKAGES,
}
OTHER_PACKAGES = {
    "wordnet-base": "WordNet 3.0 licence",
    "dict-gcide": "GPL-2+",
    "dict-foldoc": "GFDL-1.1+",
    "dict-jargon": "public domain",
    "perl-doc": "Artistic or GPL-1+",
    "manpages-zh": "GPL-2+, GFDL-1.2+",
}
TAG = re.compile(r"<[^>]+>")
SPACE = re.compile(r"\s+")
FURNITURE = re.compile(r"(Navigation|Table of Contents)$")
HEADING = re.compile(r"<(?:h[1-5]|title)\b[^>]*>(.*?)</(?:h[1-5]|title)>", re.DOTALL | re.IGNORECASE)
DROPPED = re.compile(r"<(script|style|pre|head|nav|programlisting|screen)\b.*?</\1>", re.DOTALL | re.IGNORECASE)


def clean(text: str) -> str:
    """Without tags, entities and repeated white space."""
    return SPACE.sub(" ", html.unescape(TAG.sub(" ", text))).strip()


def chunks(text: str, words: int = 220) -> Iterator[str]:
    """Cut at sentence ends into passages of about `words` words (or as many Han pairs)."""
    sentences = re.split(r"(?<=[.!?])\s+|(?<=[。！？])", text)  # noqa: RUF001
    chunk: list[str] = []
    size = 0
    for sentence in sentences:
        length = max(len(sentence.split()), len(sentence) // 12)
        if chunk and size + length > words:
            yield " ".join(chunk)
            chunk, size = [], 0
        chunk.append(sentence)
        size += length
    if chunk:
        yield " ".join(chunk)


def is_chinese(text: str) -> bool:
    """Whether Han characters make up a third of the text: translations leave passages in English."""
    return 3 * len(HAN_CHARACTER.findall(text)) > len(text)


def read_text(path: Path) -> str:
    opener = gzip.open if path.suffix in {".gz", ".dz"} else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as file:
        return str(file.read())


def from_html(root: Path, pattern: str, words: int = 220) -> Iterator[tuple[str, str]]:
    """(heading, passage of about `words` words) of every section of the HTML or DocBook files."""
    for path in sorted(path for path in root.glob(pattern) if path.is_file()):
        page = read_text(path)
        name = HEADING.search(page)
        page_title = clean(name[1]) if name else ""
        parts = HEADING.split(DROPPED.sub(" ", page))
        for heading, body in zip(parts[1::2], parts[2::2], strict=False):
            title = clean(heading).strip("¶# ")
            if page_title and title not in page_title and len(title) < 25:
                title = f"{page_title} {title}"
            for passage in chunks(clean(body), words):
                if text_length(passage) > 12 and 3 < len(title) < 120 and not FURNITURE.search(title):
                    yield re.sub(r"^[\d.]+\s*", "", title), passage


def from_dictd(path: Path) -> Iterator[tuple[str, str]]:
    """(headword, definition) of a dictd database with unindented headwords."""
    blocks = re.split(r"\n\n(?=\S)", read_text(path))
    for block in blocks:
        head, _, body = block.partition("\n")
        text = clean(re.sub(r"[{}\\]|\[1913 Webster\]|\[[^\]]{0,40}\]", " ", body.replace("<", "(").replace(">", ")")))
        headword = clean(re.split(r"\\|\{", head)[0])
        if 1 < len(headword) < 60 and len(text.split()) > 7:
            yield headword, next(chunks(text))


def from_wordnet(root: Path) -> Iterator[tuple[str, str]]:
    """(a lemma, "lemmas: gloss") of every synset; examples stay with the gloss."""
    for path in sorted(root.glob("**/wordnet/data.*")):
        for line in read_text(path).splitlines():
            if line.startswith(" ") or "|" not in line:
                continue
            fields, _, gloss = line.partition("|")
            parts = fields.split()
            count = int(parts[3], 16)
            lemmas = [parts[4 + 2 * i].replace("_", " ") for i in range(count)]
            text = clean(gloss.replace('"', ""))
            if len(text.split()) > 5:
                rest = ", ".join(lemmas[1:])
                yield lemmas[0], f"{rest}: {text}" if rest else text


def from_pod(root: Path) -> Iterator[tuple[str, str]]:
    """(heading or question, text) of Perl's manual and its questions and answers."""
    for path in sorted(root.glob("**/pod/*.pod")):
        for section in re.split(r"^=(?=head\d|item)", read_text(path), flags=re.MULTILINE)[1:]:
            head, _, body = section.partition("\n")
            title = clean(re.sub(r"^(head\d|item)\s*|[A-Z]<+|>+", "", head))
            prose = " ".join(p for p in body.split("\n\n") if p[:1] not in {" ", "\t", "="})
            for passage in chunks(clean(re.sub(r"[A-Z]<+\s?|\s?>+", "", prose))):
                if len(passage.split()) > 15 and 3 < len(title) < 120:
                    yield title, passage


def from_man(root: Path, pattern: str, words: int = 90) -> Iterator[tuple[str, str]]:
    """(page and section, text) of troff manual pages."""
    for path in sorted(root.glob(pattern)):
        page = path.name.split(".")[0]
        for section in re.split(r"^\.SH\s*", read_text(path), flags=re.MULTILINE)[1:]:
            head, _, body = section.partition("\n")
            text = re.sub(r"^\.\\\".*$|^\.[A-Z]+\s*", " ", body, flags=re.MULTILINE)
            text = clean(re.sub(r"\\f.|\\&|\\\||\\\^|\\", "", text).replace("<", "("))
            for passage in list(chunks(text, words))[:6]:
                if len(passage) > 40:
                    yield f"{page} {clean(head).strip(chr(34))}", passage


def from_descriptions(stanzas: str, field: str) -> Iterator[tuple[str, str]]:
    """(short, long description) of Debian packages; near copies of one description once."""
    seen: set[str] = set()
    pattern = re.compile(rf"^{field}: (.+)\n((?: .*\n)+)", re.MULTILINE)
    for match in pattern.finditer(stanzas):
        text = clean(re.sub(r"^ \.$", " ", match[2], flags=re.MULTILINE).replace("<", "("))
        key = text[:60]
        if key not in seen and len(text) > 60:
            seen.add(key)
            yield match[1].strip(), next(chunks(text))


def run(command: list[str], folder: Path) -> None:
    """A Debian tool on fixed arguments; package names come from the tables above."""
    subprocess.run(command, cwd=folder, check=True, capture_output=True)  # noqa: S603


def download(package: str, folder: Path) -> Path:
    """Unpack a Debian package below `folder`; return its root. Needs network access to a mirror."""
    root = folder / package
    if not root.exists():
        run(["apt-get", "download", package], folder)
        archive = next(folder.glob(f"{package}_*.deb"))
        run(["dpkg", "-x", archive.name, package], folder)
        archive.unlink()
    return root


def descriptions(folder: Path, language: str, fetched: tuple[str, ...] = ("en", "zh_CN", "zh_TW")) -> str:
    """Debian's package descriptions in English ("en") or translated ("zh": zh_CN and zh_TW); all of `fetched` come."""
    lists = folder / f"lists-{fetched[0]}"
    if not lists.exists():
        (lists / "partial").mkdir(parents=True)
        options = [
            f"Dir::State::Lists={lists}",
            f"Acquire::Languages={','.join(fetched)}",
            "Acquire::GzipIndexes=false",
        ]
        command = ["apt-get", "update", *(word for option in options for word in ("-o", option))]
        run(command, folder)
    return "\n\n".join(path.read_text("utf-8") for path in sorted(lists.glob(f"*Translation-{language}*")))


def collect(folder: Path) -> Iterator[Record]:
    def records(pairs: Iterable[tuple[str, str]], source: str, lang: str = "en") -> Iterator[Record]:
        for title, text in pairs:
            yield {"title": title, "text": text, "source": source, "lang": lang}

    for package, (pattern, _) in HTML_PACKAGES.items():
        yield from records(from_html(download(package, folder), pattern), package)
    for package, (pattern, _) in CHINESE_PACKAGES.items():
        pairs = from_html(download(package, folder), pattern, words=90)
        yield from records((pair for pair in pairs if is_chinese(pair[1])), package, "zh")
    for name in ("gcide", "foldoc", "jargon"):
        path = next(download(f"dict-{name}", folder).glob(f"**/{name}.dict.dz"))
        yield from records(from_dictd(path), f"dict-{name}")
    yield from records(from_wordnet(download("wordnet-base", folder)), "wordnet-base")
    yield from records(from_pod(download("perl-doc", folder)), "perl-doc")
    yield from records(from_man(download("manpages-zh", folder), "**/zh_*/man*/*.gz"), "manpages-zh", "zh")
    for language, field in (("en", "Description-en"), ("zh", "Description-zh_..")):
        pairs = from_descriptions(descriptions(folder, language), field)
        yield from records(pairs, f"debian-descriptions-{language}", language)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder of unpacked packages, kept between runs")
    parser.add_argument("--languages", action="store_true", help="the languages of training.languages instead")
    arguments = parser.parse_args()
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary, gzip.open(arguments.out, "wt", encoding="utf-8") as out:
        folder = (arguments.cache or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for record in languages.collect(folder) if arguments.languages else collect(folder):
            counts[record["source"]] = counts.get(record["source"], 0) + 1
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    for source, count in counts.items():
        print(f"{source:28} {count}")


if __name__ == "__main__":
    main()
