"""Stacks of grey slices in tif files: opened strictly, decoded once, written whole."""
