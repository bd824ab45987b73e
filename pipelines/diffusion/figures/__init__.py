"""Figures that show why diffusion works: each writes its picture and gives back its numbers."""
