"""Reconstruction: consumers are refitted by least squares, layer by layer from front to back."""
