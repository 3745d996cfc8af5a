"""Training a pruned network without labels: it learns to follow the original on augmented images."""
