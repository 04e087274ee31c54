"""Real models: llama.cpp, its programs, and what they say of a patch."""
