"""Datasets of labelled pictures in formats of their own: MNIST, CIFAR-10."""
