"""English plurals of the names of read models.

A short rule of our own: the library `inflect` takes over a second to import. `plural=` of a read model has the last
word.
"""

from __future__ import annotations

import re

_LAST_WORD = re.compile(r"(?P<before>.*?)(?P<word>[A-Z]?[a-z0-9]+|[A-Z0-9]+)(?P<after>_*)$", re.DOTALL)

_IRREGULAR = {
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "man": "men",
    "mouse": "mice",
    "person": "people",
    "quiz": "quizzes",
    "tooth": "teeth",
    "woman": "women",
    **{word: f"{word}s" for word in ("epoch", "monarch", "stomach")},
    **{word: f"{word}es" for word in ("echo", "hero", "potato", "tomato", "veto")},
    **{f"{stem}f": f"{stem}ves" for stem in ("cal", "hal", "lea", "loa", "sel", "shel", "thie", "wol")},
    **{f"{stem}fe": f"{stem}ves" for stem in ("kni", "li", "wi")},
}

_SAME = ("aircraft", "chassis", "data", "equipment", "feedback", "fish", "information", "money", "sheep", "staff")
"""Words whose plural is the word itself, beside those that end in an s that is no ending of a singular."""

_SINGULAR_S = ("as", "is", "os", "ss", "us")


def plural(name: str) -> str:
    """Return the plural of a name, by its last word: `BankAccounts` for `BankAccount`, `entries` for `entry`.

    The name itself is returned if it is a plural already, such as `DailySales`.
    """
    found = _LAST_WORD.match(name)
    if found is None:
        return f"{name}s"
    word = found["word"]
    many = _plural_of(word.lower())
    if not word.islower():
        many = word + many[len(word) :] if many.startswith(word.lower()) else _capitalized(word, many)
    return f"{found['before']}{many}{found['after']}"


def _capitalized(word: str, many: str) -> str:
    if len(word) > 1 and word.isupper():
        return many.upper()
    return many[0].upper() + many[1:]


def _plural_of(word: str) -> str:
    if word in _SAME:
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("sis") or word == "axis":
        return f"{word[:-2]}es"
    if word.endswith("s") and not word.endswith(_SINGULAR_S):
        return word
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"
