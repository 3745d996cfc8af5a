"""Compaction: remove nodes whose weights are zero, and fold their constants into the consumers' biases."""
