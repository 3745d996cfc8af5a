"""Behaviors: which channels of a layer behave alike, and what it costs to emulate one by another."""
