"""Random networks, the same for the same seed, and what is known of them without the code under test."""
