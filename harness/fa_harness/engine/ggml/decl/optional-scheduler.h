// several backends under one scheduler, and the graph allocator

typedef struct ggml_backend_buffer_type * ggml_backend_buffer_type_t;
typedef struct ggml_backend_sched *       ggml_backend_sched_t;
typedef struct ggml_gallocr *             ggml_gallocr_t;

ggml_backend_sched_t ggml_backend_sched_new(ggml_backend_t * backends, ggml_backend_buffer_type_t * bufts,
        int n_backends, size_t graph_size, bool parallel, bool op_offload);
void                 ggml_backend_sched_free(ggml_backend_sched_t sched);
void                 ggml_backend_sched_reset(ggml_backend_sched_t sched);
void                 ggml_backend_sched_set_tensor_backend(ggml_backend_sched_t sched, struct ggml_tensor * node, ggml_backend_t backend);
bool                 ggml_backend_sched_alloc_graph(ggml_backend_sched_t sched, struct ggml_cgraph * graph);
enum ggml_status     ggml_backend_sched_graph_compute(ggml_backend_sched_t sched, struct ggml_cgraph * graph);

ggml_backend_buffer_type_t ggml_backend_get_default_buffer_type(ggml_backend_t backend);
ggml_gallocr_t             ggml_gallocr_new(ggml_backend_buffer_type_t buft);
void                       ggml_gallocr_free(ggml_gallocr_t galloc);
bool                       ggml_gallocr_alloc_graph(ggml_gallocr_t galloc, struct ggml_cgraph * graph);

void                 ggml_set_input(struct ggml_tensor * tensor);
void                 ggml_set_output(struct ggml_tensor * tensor);
struct ggml_tensor * ggml_fill(struct ggml_context * ctx, struct ggml_tensor * a, float c);
