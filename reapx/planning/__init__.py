"""Planning: the steps from a model and images to a plan, and from a plan to a smaller model."""
