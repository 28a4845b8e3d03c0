"""Users: who holds accounts."""
