"""`python -m logitlens`."""

from logitlens.cli import program

program()
