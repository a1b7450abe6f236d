"""Spellings of a text that mean the same: capitals, title case, typing errors, missing diacritics, key words.

Training shows them with the target of the clean text, and `training.robustness` measures what they change.
"""

import random
import unicodedata

from training.texts import query_variants

KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {
    letter: "".join(row[max(0, place - 1) : place] + row[place + 1 : place + 2])
    for row in KEYBOARD
    for place, letter in enumerate(row)
}
ERRORS = 0.12  # of the longer words of a misspelt text


def title_case(text: str) -> str:
    """Every word with a capital, as in headings and the queries of some collections."""
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))


def without_diacritics(text: str) -> str:
    """Latin letters without their marks, as typed on a keyboard that lacks them; other scripts stay."""
    plain = []
    for character in text:
        parts = unicodedata.normalize("NFD", character)
        plain.append(parts[0] if parts[0].isascii() and len(parts) > 1 else character)
    return "".join(plain)


def misspelt_word(word: str, rng: random.Random) -> str:
    """One slip of the fingers: a letter left out, doubled, exchanged with the next or hit beside."""
    place = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:place] + word[place + 1 :]
    if kind == 1:
        return word[:place] + word[place] + word[place:]
    if kind == 2:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    near = NEIGHBOURS.get(word[place].lower(), "")
    return word[:place] + rng.choice(near) + word[place + 1 :] if near else word


def misspelt(text: str, rng: random.Random, errors: float = ERRORS) -> str:
    """The text with slips in a share of the words of four and more letters."""
    words = text.split(" ")
    return " ".join(
        misspelt_word(word, rng) if len(word) > 3 and word.isalpha() and rng.random() < errors else word
        for word in words
    )


def perturbed(text: str, kind: str, rng: random.Random) -> str:
    """The text in one of the spellings that training.robustness measures."""
    if kind == "upper":
        return text.upper()
    if kind == "lower":
        return text.lower()
    if kind == "title":
        return title_case(text)
    if kind == "typing errors":
        return misspelt(text, rng, 0.3)
    if kind == "no diacritics":
        return without_diacritics(text)
    if kind == "keywords":
        return query_variants(text)[2]
    raise ValueError(f"no spelling {kind!r}")
