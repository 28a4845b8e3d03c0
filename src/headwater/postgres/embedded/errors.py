"""What goes wrong with the embedded PostgreSQL."""

from headwater.errors import HeadwaterError


class EmbeddedError(HeadwaterError):
    """The embedded PostgreSQL could not be started or stopped; the sentence says why and what to do."""
