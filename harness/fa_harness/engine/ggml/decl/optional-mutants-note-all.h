// of the library `generated`
void         ggml_fa_mutant_note_all(void);
bool         ggml_fa_mutant_was_reached(int i);
