"""The command line: one short file a command; each parses, calls one library function, and prints.

A command imports what it runs when it runs, so that ``medi3d --help`` does not wait for torch.
"""
