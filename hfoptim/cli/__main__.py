"""`python -m hfoptim.cli` is the command `hfoptim`."""

from hfoptim.cli import main

main()
