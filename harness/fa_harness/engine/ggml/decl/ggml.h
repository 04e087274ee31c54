// ggml.h: the part that the harness uses; checked by the C compiler against the library's own header

#define GGML_MAX_DIMS ...

enum ggml_status { GGML_STATUS_SUCCESS, ... };
enum ggml_prec   { GGML_PREC_DEFAULT, GGML_PREC_F32, ... };
enum ggml_type   { GGML_TYPE_COUNT, ... }; // the others as numbers, since a library may lack some

struct ggml_context;
struct ggml_cgraph;
struct ggml_threadpool;

struct ggml_tensor {
    enum ggml_type type;
    int64_t ne[...];
    size_t  nb[...];
    struct ggml_tensor * view_src;
    void *  data;
    ...;
};

struct ggml_init_params {
    size_t mem_size;
    void * mem_buffer;
    bool   no_alloc;
};

struct ggml_context * ggml_init(struct ggml_init_params params);
void                  ggml_free(struct ggml_context * ctx);

struct ggml_tensor * ggml_new_tensor_4d(struct ggml_context * ctx, enum ggml_type type,
        int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3);
struct ggml_tensor * ggml_view_4d(struct ggml_context * ctx, struct ggml_tensor * a,
        int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3, size_t nb1, size_t nb2, size_t nb3, size_t offset);
struct ggml_tensor * ggml_permute(struct ggml_context * ctx, struct ggml_tensor * a,
        int axis0, int axis1, int axis2, int axis3);
size_t               ggml_nbytes(const struct ggml_tensor * tensor);

struct ggml_tensor * ggml_flash_attn_ext(struct ggml_context * ctx,
        struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v, struct ggml_tensor * mask,
        float scale, float max_bias, float logit_softcap);

struct ggml_cgraph * ggml_new_graph_custom(struct ggml_context * ctx, size_t size, bool grads);
void                 ggml_build_forward_expand(struct ggml_cgraph * cgraph, struct ggml_tensor * tensor);

typedef void (*ggml_to_float_t)(const void * x, float * y, int64_t k);
struct ggml_type_traits {
    const char *    type_name;
    ggml_to_float_t to_float;
    ...;
};
const struct ggml_type_traits * ggml_get_type_traits(enum ggml_type type);

struct ggml_threadpool_params {
    int      n_threads;
    uint32_t poll;
    ...;
};
struct ggml_threadpool_params ggml_threadpool_params_default(int n_threads);
