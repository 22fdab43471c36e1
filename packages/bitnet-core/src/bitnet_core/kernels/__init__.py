"""C++ for a CPU: compiled when it is first needed, and what a training step does in it."""
