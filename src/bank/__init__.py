"""A bank, Headwater's bundled domain: money makes every lost or doubled event visible."""
