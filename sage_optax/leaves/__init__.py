"""What each leaf of a tree of parameters is: role, axes and the evidence."""
