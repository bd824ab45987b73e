"""Several methods under one protocol: what is trained, with which seeds, and how the results are put side by side."""
