// ggml-cpu.h: the CPU backend, its thread pool and plan

struct ggml_cplan {
    size_t    work_size;
    uint8_t * work_data;
    ...;
};
struct ggml_cplan ggml_graph_plan(const struct ggml_cgraph * cgraph, int n_threads, struct ggml_threadpool * threadpool);

enum ggml_status  ggml_graph_compute(struct ggml_cgraph * cgraph, struct ggml_cplan * cplan);

struct ggml_threadpool * ggml_threadpool_new(struct ggml_threadpool_params * params);
void                     ggml_threadpool_free(struct ggml_threadpool * threadpool);

ggml_backend_t     ggml_backend_cpu_init(void);
ggml_backend_reg_t ggml_backend_cpu_reg(void);
void               ggml_backend_cpu_set_n_threads(ggml_backend_t backend_cpu, int n_threads);
void               ggml_backend_cpu_set_threadpool(ggml_backend_t backend_cpu, struct ggml_threadpool * threadpool);

typedef void (*ggml_vec_dot_t)(int n, float * s, size_t bs, const void * x, size_t bx, const void * y, size_t by, int nrc);
struct ggml_type_traits_cpu {
    ggml_vec_dot_t vec_dot;
    enum ggml_type vec_dot_type;
    ...;
};
const struct ggml_type_traits_cpu * ggml_get_type_traits_cpu(enum ggml_type type);
