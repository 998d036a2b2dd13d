"""What several optimizers have in common: each module is named for what is in it, and registers nothing."""
