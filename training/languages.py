"""Titled passages in languages other than English and Chinese, from free Debian packages.

No teacher here reads these languages. Their targets come from BM25 coverage alone, so that the model judges a text in
any script by what it shares with the query. `collect` is called by `training.free_text --languages`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from training.texts import UNSPACED_CHARACTER

# Language -> its manual pages, other packages (glob of the files read), name in Debian's translated descriptions.
# Licences: manual pages GPL-2+ and free documentation licences, LibreOffice's help MPL-2.0, Debian's reference and
# questions GPL-2+.
MANUALS = {
    "de": "manpages-de", "fr": "manpages-fr", "es": "manpages-es", "ru": "manpages-ru", "ja": "manpages-ja",
    "it": "manpages-it", "pt": "manpages-pt-br", "pl": "manpages-pl", "nl": "manpages-nl", "uk": "manpages-uk",
    "sv": "manpages-sv", "cs": "manpages-cs", "da": "manpages-da", "fi": "manpages-fi", "ro": "manpages-ro",
    "tr": "manpages-tr",
}  # fmt: skip
HELP = {
    "de": "de", "fr": "fr", "es": "es", "ru": "ru", "ja": "ja", "it": "it", "pt": "pt-br", "pl": "pl", "ko": "ko",
    "el": "el", "hi": "hi", "tr": "tr", "vi": "vi", "hu": "hu", "cs": "cs",
}  # fmt: skip
DESCRIPTIONS = {
    "de": "de", "fr": "fr", "es": "es", "ru": "ru", "ja": "ja", "it": "it", "pt": "pt_BR", "pl": "pl", "nl": "nl",
    "uk": "uk", "sv": "sv", "cs": "cs", "da": "da", "fi": "fi", "hu": "hu", "ko": "ko", "sk": "sk", "tr": "tr",
    "vi": "vi",
}  # fmt: skip
# Tokens of a word (Qwen3's own first merges are English): longer pieces would not fit the rows of training.
TOKENS_PER_WORD = {"ru": 5.0, "uk": 5.0, "el": 6.0, "hi": 7.0, "ko": 4.0}
USUAL_TOKENS = 2.4
# What questions begin with; the rest of a question is made of a passage's words.
QUESTIONS = {
    "de": ("Was ist", "Wie", "Wann", "Welche", "Welches", "Wer", "Warum", "Wo", "Wie viele", "Wozu dient"),
    "fr": ("Qu'est-ce que", "Comment", "Quand", "Quel", "Quelle", "Qui", "Pourquoi", "Où", "Combien de"),
    "es": ("¿Qué es", "¿Cómo", "¿Cuándo", "¿Cuál", "¿Quién", "¿Por qué", "¿Dónde", "¿Cuántos", "¿Qué"),
    "ru": ("Что такое", "Как", "Когда", "Какой", "Какие", "Кто", "Почему", "Где", "Сколько", "Для чего", "В каком"),  # noqa: RUF001
    "uk": ("Що таке", "Як", "Коли", "Який", "Хто", "Чому", "Де", "Скільки"),
    "it": ("Che cos'è", "Come", "Quando", "Quale", "Chi", "Perché", "Dove", "Quanti"),
    "pt": ("O que é", "Como", "Quando", "Qual", "Quem", "Por que", "Onde", "Quantos"),
    "pl": ("Co to jest", "Jak", "Kiedy", "Jaki", "Kto", "Dlaczego", "Gdzie", "Ile"),
    "nl": ("Wat is", "Hoe", "Wanneer", "Welke", "Wie", "Waarom", "Waar", "Hoeveel"),
}
ENDINGS = {"ja": ("とは何ですか", "の使い方", "はどこですか", "とは", "はいつですか")}
UNSPACED_TOKENS = re.compile(r"[^\s。、，．]{2,12}")  # noqa: RUF001


def translated(lang: str) -> bool:
    """Neither English nor Chinese ("zh", "zh-Hant"), which have labels."""
    return lang != "en" and not lang.startswith("zh")


def words_for(lang: str, words: int) -> int:
    """How many words of the language take about as many tokens as `words` English ones."""
    return max(12, round(words * 1.4 / TOKENS_PER_WORD.get(lang, USUAL_TOKENS)))


def in_language(text: str, lang: str) -> bool:
    """Whether a text is plausibly translated: half of the letters in the script where the script tells."""
    letters = [character for character in text if character.isalpha()]
    if lang in {"ru", "uk", "el", "hi", "ko"}:
        return 2 * sum(not character.isascii() for character in letters) > len(letters)
    if lang == "ja":
        return 4 * len(UNSPACED_CHARACTER.findall(text)) > len(letters)
    return any(not character.isascii() for character in letters)


def collect(folder: Path) -> Iterator[dict[str, str]]:
    """Records of training.free_text; `folder` keeps the unpacked packages."""
    from training.free_text import descriptions, download, from_descriptions, from_html, from_man

    def records(pairs: Iterator[tuple[str, str]], source: str, lang: str) -> Iterator[dict[str, str]]:
        for title, text in pairs:
            if in_language(text, lang):
                yield {"title": title, "text": text, "source": source, "lang": lang}

    for lang, package in MANUALS.items():
        pairs = from_man(download(package, folder), "**/man/*/man*/*.gz", words_for(lang, 150))
        yield from records(pairs, package, lang)
    for lang, name in HELP.items():
        package = f"libreoffice-help-{name}"
        pairs = from_html(download(package, folder), "**/text/**/*.html", words_for(lang, 150))
        yield from records(pairs, package, lang)
    for lang, name in DESCRIPTIONS.items():
        pairs = from_descriptions(descriptions(folder, name, tuple(DESCRIPTIONS.values())), f"Description-{name}")
        yield from records(pairs, f"debian-descriptions-{lang}", lang)
