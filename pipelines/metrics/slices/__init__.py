"""Slices of a woven composite measured in physical units, and a set of generated ones against real ones."""

from pipelines.metrics.slices.comparison import SliceComparison, compare_slices
from pipelines.metrics.slices.descriptors import SliceDescriptors

__all__ = ["SliceComparison", "SliceDescriptors", "compare_slices"]
