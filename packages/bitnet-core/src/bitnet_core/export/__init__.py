"""From a checkpoint to files that others run: transformers folders, GGUF for llama.cpp, the packed form."""
