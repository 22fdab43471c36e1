"""The student with two-bit weights: on a CPU by the C++ kernel, on a GPU by Triton's."""
