"""Files and folders: complete or not there, checked to the bit, for one process at a time."""
