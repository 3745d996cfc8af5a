"""The captured network: its graph, how parts of it are run, and its linear layers."""
