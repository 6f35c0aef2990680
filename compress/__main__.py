"""`python -m compress` is the command line."""

from compress.cli.main import main

main()
