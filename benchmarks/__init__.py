"""Headwater beside its floor, in one run, as ratios: `make bench`."""
