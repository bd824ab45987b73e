"""What is in training data and what is wrong with it: the parts of data/check.py."""
