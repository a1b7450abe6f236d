"""Product titles as shops write them, generated: for measuring where real ones cannot be shipped.

Written for this project. A title is put together from parts, so that it reads like one; its lengths follow those of
real titles (1,000 Chinese and 1,000 English ones, lengths only), which `docs/benchmarks.md` compares.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from ..config import check_choice, check_positive
from ..errors import InvalidInputError
from . import title_words

LANGUAGES = ("zh", "en", "both")

#: A search for such products, of the length that searches have.
DEFAULT_QUERY = "健身女生T恤短袖"


def generate_titles(count: int, *, language: str = "zh", seed: int = 0) -> list[str]:
    """Distinct titles; the same for the same arguments.

    Args:
        count: how many.
        language: "zh", "en", or "both" in turns.
        seed: of the choices.

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
    """A file's lines that are not blank, one title each.

    Raises:
        InvalidInputError: it cannot be read, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InvalidInputError("titles", str(path), f"{error.strerror}; give a text file, one title a line") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError("titles", str(path), f"is not UTF-8 at byte {error.start}") from error
    titles = [line.strip() for line in lines if line.strip()]
    if not titles:
        raise InvalidInputError("titles", str(path), "has no line with text in it")
    return titles


def sample(titles: list[str], count: int, rng: random.Random) -> list[str]:
    """`count` titles, none twice.

    Raises:
        InvalidInputError: there are fewer.
    """
    if count > len(titles):
        raise InvalidInputError("titles", len(titles), f"titles are fewer than the {count} of one request: give more")
    return rng.sample(titles, count)


def _chinese(rng: random.Random) -> str:
    """Brand or season, what it is, for whom, how it looks: until the shop's 30 characters or so are used up."""
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
    """Brand, model number, item, attributes; lower case, as feeds of shops have them."""
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
