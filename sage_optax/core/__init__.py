"""What methods share: units, averages, orthogonalisation, subspaces."""
