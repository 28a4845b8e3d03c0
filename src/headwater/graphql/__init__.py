"""Headwater over GraphQL: the engine that runs operations, and the transports that carry them."""
