"""The command line: one short file a command; each parses, calls one library function, and prints."""
