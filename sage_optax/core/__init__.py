"""Code shared by methods: units, averages, orthogonalization, subspaces."""
