"""From a model or named parameters and a name to an optimizer."""
