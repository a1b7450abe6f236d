"""Generates product titles like those of shops, for measurements: real titles cannot be shipped with the package.

Titles are assembled from parts so that they read like real ones. Their lengths follow those of 1,000 Chinese and 1,000
English real titles; `docs/benchmarks.md` compares both.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from ..checks import check_choice, check_positive
from ..errors import InvalidInputError
from . import title_words

LANGUAGES = ("zh", "en", "both")

#: A search for such products, with the length of a typical search.
DEFAULT_QUERY = "健身女生T恤短袖"


def generate_titles(count: int, *, language: str = "zh", seed: int = 0) -> list[str]:
    """Distinct titles; the same for the same arguments.

    Args:
        count: number of titles.
        language: "zh", "en", or "both" in turn.
        seed: seed of the random choices.

    Raises:
        InvalidInputError: an argument is unusable.
    """
    check_positive("count", count)
    check_choice("language", language, LANGUAGES)
    rng = random.Random(seed)  # noqa: S311 - nothing secret
    makers: dict[str, Sequence[Callable[[random.Random], str]]] = {
        "zh": (_chinese,),
        "en": (_english,),
        "both": (_chinese, _english),
    }
    titles: dict[str, None] = {}
    while len(titles) < count:
        titles.setdefault(makers[language][len(titles) % len(makers[language])](rng))
    return list(titles)


def generate_queries(count: int, *, language: str = "zh", seed: int = 0) -> list[str]:
    """Distinct short searches for such products, all of about the length of DEFAULT_QUERY.

    Raises:
        InvalidInputError: an argument is unusable.
    """
    check_positive("count", count)
    check_choice("language", language, LANGUAGES)
    rng = random.Random(seed)  # noqa: S311 - nothing secret
    queries: dict[str, None] = {}
    while len(queries) < count:
        chinese = language == "zh" or (language == "both" and len(queries) % 2 == 0)
        item = rng.choice(title_words.ZH_ITEMS if chinese else title_words.EN_ITEMS)
        if chinese:
            use, person = rng.choice(title_words.ZH_USES), rng.choice(title_words.ZH_PEOPLE)
            query = f"{use}{person}{item}{rng.choice(title_words.ZH_DETAILS)}"
        else:
            query = (
                f"{rng.choice(title_words.EN_MATERIALS)} {item} {rng.choice(title_words.EN_FOR)} {rng.randint(2, 99)}"
            )
        queries.setdefault(query)
    return list(queries)


def read_titles(path: Path) -> list[str]:
    """The titles of a file: its lines that are not blank.

    Raises:
        InvalidInputError: the file cannot be read, or contains no title.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InvalidInputError(
            "titles", str(path), f"{error.strerror}; give a text file with one title per line"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidInputError("titles", str(path), f"is not UTF-8 at byte {error.start}") from error
    titles = [line.strip() for line in lines if line.strip()]
    if not titles:
        raise InvalidInputError("titles", str(path), "contains no line with text")
    return titles


def sample(titles: list[str], count: int, rng: random.Random) -> list[str]:
    """Draw `count` titles without replacement.

    Raises:
        InvalidInputError: there are fewer titles.
    """
    if count > len(titles):
        raise InvalidInputError("titles", len(titles), f"titles are fewer than the {count} of one request: give more")
    return rng.sample(titles, count)


def _chinese(rng: random.Random) -> str:
    """A Chinese title: brand or season, product, user and style, up to the limit of shops, about 30 characters."""
    item = rng.choice(title_words.ZH_ITEMS)
    wanted = min(60, max(8, round(rng.gauss(27.5, 4.2))))
    parts = []
    if rng.random() < 0.4:
        parts.append(rng.choice(title_words.ZH_BRANDS))
    if rng.random() < 0.5:
        parts.append(f"{rng.randint(2019, 2026)}{rng.choice(title_words.ZH_SEASONS)}新款")
    parts += [rng.choice(title_words.ZH_PEOPLE), rng.choice(title_words.ZH_USES) + item]
    if rng.random() < 0.25:
        parts.append(
            rng.choice(title_words.ZH_MEASURES).format(rng.choice((50, 100, 120, 200, 250, 500)), rng.randint(2, 12))
        )
    if rng.random() < 0.12:
        parts.append(f"{rng.choice('ABCDHKLMNRSTXY')}{rng.randint(100, 99999)}")
    extra = [*title_words.ZH_DETAILS, *title_words.ZH_STYLES]
    rng.shuffle(extra)
    while extra and sum(map(len, parts)) < wanted:
        parts.append(extra.pop())
    separator = " " if rng.random() < 0.12 else ""
    return separator.join(parts)


def _english(rng: random.Random) -> str:
    """An English title: brand, model number, item and attributes, in lower case as in the feeds of shops."""
    wanted = min(40, max(2, round(rng.lognormvariate(2.02, 0.62))))
    item = rng.choice(title_words.EN_ITEMS)
    words = [rng.choice(title_words.EN_BRANDS)]
    if rng.random() < 0.75:
        letters = "".join(rng.choices("abcdefhklmnprstvwx", k=rng.randint(1, 3)))
        words.append(f"{letters}{rng.choice(('', '-'))}{rng.randint(10, 99999)}{rng.choice(('', '', 'b', 'x', 's'))}")
    extra = [*title_words.EN_MATERIALS, *title_words.EN_DETAILS]
    rng.shuffle(extra)
    tail: list[str] = []
    while extra and len(words) + len(item.split()) + len(" ".join(tail).split()) < wanted:
        if rng.random() < 0.22:
            measure = rng.choice(title_words.EN_MEASURES)
            tail.append(measure.format(rng.choice((2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 50)), rng.randint(2, 40)))
        else:
            tail.append(extra.pop())
    if rng.random() < 0.25 and len(tail) > 2:
        tail[-1:] = [rng.choice(title_words.EN_FOR)]
    cut = rng.randint(0, len(tail))
    return " ".join([*words, *tail[:cut], item, *tail[cut:]])
