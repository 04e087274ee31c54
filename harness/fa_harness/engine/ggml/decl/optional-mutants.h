// the switch of the library `mutants`
bool         ggml_fa_mutant_set(const char * id);
bool         ggml_fa_mutant_reached(void);
const char * ggml_fa_mutant_id(int i);
