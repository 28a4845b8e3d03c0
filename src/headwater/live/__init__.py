"""Live: what changes in a read model, to those who watch it."""
