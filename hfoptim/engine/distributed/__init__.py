"""Tensors divided among ranks."""
