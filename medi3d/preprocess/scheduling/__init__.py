"""Many cases at once: one job a case, in processes or on a cluster, within the memory there is."""
