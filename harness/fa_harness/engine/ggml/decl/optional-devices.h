// devices and their backends

ggml_backend_reg_t ggml_backend_reg_by_name(const char * name);
ggml_backend_dev_t ggml_backend_reg_dev_get(ggml_backend_reg_t reg, size_t index);
ggml_backend_reg_t ggml_backend_load(const char * path);

size_t             ggml_backend_dev_count(void);
ggml_backend_dev_t ggml_backend_dev_get(size_t index);
const char *       ggml_backend_dev_name(ggml_backend_dev_t device);
const char *       ggml_backend_dev_description(ggml_backend_dev_t device);
void               ggml_backend_dev_memory(ggml_backend_dev_t device, size_t * free, size_t * total);
ggml_backend_t     ggml_backend_dev_init(ggml_backend_dev_t device, const char * params);

bool                 ggml_backend_supports_op(ggml_backend_t backend, const struct ggml_tensor * op);
int                  ggml_graph_n_nodes(struct ggml_cgraph * cgraph);
struct ggml_tensor * ggml_graph_node(struct ggml_cgraph * cgraph, int i);
const char *         ggml_op_desc(const struct ggml_tensor * t);
