"""Limits on training memory, baselines, and what continuous integration reads of them."""
