"""Running a model: a conversation goes in, pieces of text come out. torch and llama.cpp behind one protocol."""
