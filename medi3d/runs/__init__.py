"""Run folders: what a run was asked, where it stands, and the checkpoints that let it go on or predict."""
