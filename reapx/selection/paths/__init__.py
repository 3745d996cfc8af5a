"""Paths: an order of removal with exact errors, and the weights that go with each cut of it."""
