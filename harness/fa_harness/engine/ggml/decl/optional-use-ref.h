// upstream's switch to the reference implementation: the vec path for every shape
void ggml_backend_cpu_set_use_ref(ggml_backend_t backend_cpu, bool use_ref);
