"""Moments: Gram matrices of layer inputs, accumulated over the calibration images."""
