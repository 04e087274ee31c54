struct ggml_init_params { size_t mem_size; void * mem_buffer; bool no_alloc; };
struct ggml_cplan {
    size_t    work_size;
    uint8_t * work_data;
    int       n_threads;
    void    * abort_callback;
    void    * abort_callback_data;
};
struct ggml_context; struct ggml_tensor; struct ggml_cgraph; struct ggml_backend_buffer;

struct ggml_context * ggml_init(struct ggml_init_params params);
void ggml_free(struct ggml_context * ctx);
struct ggml_tensor * ggml_new_tensor_4d(struct ggml_context * ctx, int type, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3);
struct ggml_tensor * ggml_view_4d(struct ggml_context * ctx, struct ggml_tensor * a, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3, size_t nb1, size_t nb2, size_t nb3, size_t offset);
struct ggml_tensor * ggml_permute(struct ggml_context * ctx, struct ggml_tensor * a, int axis0, int axis1, int axis2, int axis3);
struct ggml_tensor * ggml_flash_attn_ext(struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v, struct ggml_tensor * mask, float scale, float max_bias, float softcap);
struct ggml_cgraph * ggml_new_graph_custom(struct ggml_context * ctx, size_t size, bool grads);
void ggml_build_forward_expand(struct ggml_cgraph * graph, struct ggml_tensor * tensor);
struct ggml_cplan ggml_graph_plan(const struct ggml_cgraph * graph, int n_threads);
int ggml_graph_compute(struct ggml_cgraph * graph, struct ggml_cplan * plan);
struct ggml_backend_buffer * ggml_backend_cpu_buffer_from_ptr(void * ptr, size_t size);
void ggml_backend_buffer_free(struct ggml_backend_buffer * buffer);
void ggml_backend_tensor_alloc(struct ggml_backend_buffer * buffer, struct ggml_tensor * tensor, void * addr);
