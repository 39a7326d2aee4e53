"""What the cases look like and which of them stand out: statistics, and rules that turn them into findings."""
