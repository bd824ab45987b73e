"""The arithmetic of the evaluation: image statistics, distances between image sets, classifiers."""
