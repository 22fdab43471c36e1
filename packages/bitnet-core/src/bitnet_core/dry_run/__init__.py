"""How much memory a student takes: predicted by formula and by fake tensors, and measured where it fits."""
