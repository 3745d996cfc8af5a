"""Training that drives nodes to zero: an optimizer, penalties, and a monitor."""
