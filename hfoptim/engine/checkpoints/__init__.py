"""Saving and loading the state of an optimizer."""
