"""A GGUF file in llama.cpp, which runs in a process of its own."""
