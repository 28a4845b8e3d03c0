"""The error of the embedded PostgreSQL."""

from headwater.errors import HeadwaterError


class EmbeddedError(HeadwaterError):
    """The embedded PostgreSQL could not be started or stopped. The message gives the reason and what to do."""
