"""Channel groups: which channels must leave together, and which cannot leave and why."""
