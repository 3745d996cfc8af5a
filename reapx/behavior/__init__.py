"""Behaviors: which channels of a layer act alike, and what it costs to emulate one by another."""
