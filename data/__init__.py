"""Images, volumes and words; no model code."""
