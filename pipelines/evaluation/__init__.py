"""Prompts over models: what is asked, what is drawn, what is kept, what is measured."""
