"""Exporters: each reads what the core has measured and writes it in one format."""
