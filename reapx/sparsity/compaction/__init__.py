"""Compaction: removal of nodes whose weights are zero, their constants folded into what reads them."""
