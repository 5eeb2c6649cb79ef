"""Where the cells of a sweep run: in this process, in several, on a cluster."""
