"""Inspection: what can be removed from a model, found before anything is measured."""
