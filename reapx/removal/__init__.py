"""Removing channels from a copy of a network: cut, refitted, proved."""
