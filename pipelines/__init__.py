"""Everything needed to use a model: its parts, adapters, sampling, measures."""

import os

# the libraries' advice on optional packages and old formats is not for users of these scripts; errors still show
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
