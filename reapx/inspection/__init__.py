"""Inspection: find what can be removed from a model, before anything is measured."""
