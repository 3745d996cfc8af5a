"""Exporting: the call of torch.export, what it prints and refuses, and the user's lines that its nodes come from."""
