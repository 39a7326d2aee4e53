"""Which cases there are and what their files hold: layouts of raw folders, checks between files."""
