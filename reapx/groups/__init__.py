"""Channel groups: which channels must leave together, which cannot leave, and why."""
