"""Users: the owners of accounts."""
