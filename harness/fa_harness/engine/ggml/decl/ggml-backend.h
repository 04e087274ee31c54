// ggml-backend.h and ggml-alloc.h: a backend, its buffers, tensors in and out

typedef struct ggml_backend *        ggml_backend_t;
typedef struct ggml_backend_buffer * ggml_backend_buffer_t;
typedef struct ggml_backend_reg *    ggml_backend_reg_t;
typedef struct ggml_backend_device * ggml_backend_dev_t;

struct ggml_backend_feature {
    const char * name;
    const char * value;
};
typedef struct ggml_backend_feature * (*ggml_backend_get_features_t)(ggml_backend_reg_t reg);

void *                ggml_backend_reg_get_proc_address(ggml_backend_reg_t reg, const char * name);
void                  ggml_backend_free(ggml_backend_t backend);
enum ggml_status      ggml_backend_graph_compute(ggml_backend_t backend, struct ggml_cgraph * cgraph);
ggml_backend_buffer_t ggml_backend_alloc_ctx_tensors(struct ggml_context * ctx, ggml_backend_t backend);
ggml_backend_buffer_t ggml_backend_cpu_buffer_from_ptr(void * ptr, size_t size);
enum ggml_status      ggml_backend_tensor_alloc(ggml_backend_buffer_t buffer, struct ggml_tensor * tensor, void * addr);
void                  ggml_backend_buffer_free(ggml_backend_buffer_t buffer);
void                  ggml_backend_tensor_set(struct ggml_tensor * tensor, const void * data, size_t offset, size_t size);
void                  ggml_backend_tensor_memset(struct ggml_tensor * tensor, uint8_t value, size_t offset, size_t size);
void                  ggml_backend_tensor_get(const struct ggml_tensor * tensor, void * data, size_t offset, size_t size);
