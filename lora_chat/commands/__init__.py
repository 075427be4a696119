"""One file per command of the command line.

- parser: The words of the command line
"""
