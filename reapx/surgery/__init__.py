"""Surgery: smaller parameters in the user's modules, the proof that nothing else changed, saved results."""
