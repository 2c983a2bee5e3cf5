"""A self-test for machines that nobody here has seen: votes, kernels, certifiers and speeds, in about a minute."""
