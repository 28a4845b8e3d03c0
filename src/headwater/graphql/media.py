"""Content negotiation: chooses a media type by the Accept header of a request (RFC 9110, 12.5.1)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class MediaRange(NamedTuple):
    """One entry of an Accept header. place: its index in the header."""

    type: str
    subtype: str
    quality: float
    place: int

    def specificity(self, media_type: str) -> int | None:
        """Return 2 for a match of the type itself, 1 for `type/*`, 0 for `*/*`; None if the range does not match."""
        kind, _, subtype = media_type.partition("/")
        if (self.type, self.subtype) == (kind, subtype):
            return 2
        if (self.type, self.subtype) == (kind, "*"):
            return 1
        return 0 if (self.type, self.subtype) == ("*", "*") else None


class Preference(NamedTuple):
    """The rank of an offered media type. The greatest wins; among equals, the first offer.

    earliness: the negated place of the range, so that an earlier range ranks higher.
    """

    quality: float
    specificity: int
    earliness: int


def preferred(accept: str, offers: Sequence[str]) -> str | None:
    """Return the offer that the client prefers, or None if it accepts none. An empty header accepts everything."""
    ranges = list(_ranges(accept)) if accept.strip() else [MediaRange("*", "*", 1.0, 0)]
    wanted = [(preference, offer) for offer in offers if (preference := _preference(ranges, offer)) is not None]
    return max(wanted, key=lambda each: each[0])[1] if wanted else None


def _preference(ranges: list[MediaRange], offer: str) -> Preference | None:
    # The most specific range decides, even if it excludes the offer: `application/json;q=0, */*`.
    matching = [(specificity, each) for each in ranges if (specificity := each.specificity(offer)) is not None]
    if not matching:
        return None
    specificity, decisive = max(matching, key=lambda each: each[0])
    return Preference(decisive.quality, specificity, -decisive.place) if decisive.quality > 0 else None


def _ranges(accept: str) -> Iterator[MediaRange]:
    for place, entry in enumerate(accept.lower().split(",")):
        media_range, *parameters = (part.strip() for part in entry.split(";"))
        kind, slash, subtype = media_range.partition("/")
        quality = _quality(parameters)
        if slash and quality is not None:
            yield MediaRange(kind, subtype, quality, place)


def _quality(parameters: Sequence[str]) -> float | None:
    """Return the `q` of an entry, by default 1; None if it is not from 0 to 1, so that the entry is ignored."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return _unit_number(value.strip())
    return 1.0


def _unit_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0.0 <= number <= 1.0 else None
