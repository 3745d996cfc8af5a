"""Reports: an HTML page and figures of plans and results."""
