// what the harness needs of llama.cpp, checked against its headers when the module is compiled

typedef int32_t llama_token;
typedef int32_t llama_pos;
typedef int32_t llama_seq_id;

typedef bool (*ggml_abort_callback)(void * data);
typedef void (*ggml_to_float_t)(const void * x, float * y, int64_t k);
typedef void (*ggml_from_float_t)(const float * x, void * y, int64_t k);

struct ggml_tensor {
    int64_t ne[4];
    char    name[64];
    ...;
};

struct ggml_type_traits {
    int64_t         blck_size;
    size_t          type_size;
    ggml_to_float_t to_float;
    ...;
};

struct ggml_type_traits_cpu {
    ggml_from_float_t from_float;
    ...;
};

const struct ggml_type_traits     * ggml_get_type_traits    (int type);
const struct ggml_type_traits_cpu * ggml_get_type_traits_cpu(int type);

void ggml_backend_tensor_set(struct ggml_tensor * tensor, const void * data, size_t offset, size_t size);

struct gguf_context * gguf_init_empty(void);
void gguf_free(struct gguf_context * ctx);
void gguf_set_val_u32(struct gguf_context * ctx, const char * key, uint32_t val);
void gguf_set_val_f32(struct gguf_context * ctx, const char * key, float val);
void gguf_set_val_str(struct gguf_context * ctx, const char * key, const char * val);

struct llama_model_params {
    int32_t n_gpu_layers;
    ...;
};

struct llama_context_params {
    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    int32_t  n_threads;
    int32_t  n_threads_batch;
    int      flash_attn_type;
    int      type_k;
    int      type_v;
    int      type_k_cold;
    int      type_v_cold;
    int32_t  n_kv_hot;

    ggml_abort_callback abort_callback;
    void *              abort_callback_data;

    bool swa_full;
    bool kv_unified;
    ...;
};

typedef struct llama_batch {
    int32_t         n_tokens;
    llama_token  *  token;
    float        *  embd;
    llama_pos    *  pos;
    int32_t      *  n_seq_id;
    llama_seq_id ** seq_id;
    int8_t       *  logits;
} llama_batch;

typedef void (*llama_model_set_tensor_data_t)(struct ggml_tensor * tensor, void * userdata);
typedef struct llama_memory_i * llama_memory_t;

void llama_backend_init(void);

struct llama_model_params   llama_model_default_params(void);
struct llama_context_params llama_context_default_params(void);

struct llama_model * llama_model_init_from_user(struct gguf_context * metadata, llama_model_set_tensor_data_t set_tensor_data, void * set_tensor_data_ud, struct llama_model_params params);
void llama_model_free(struct llama_model * model);

struct llama_context * llama_init_from_model(struct llama_model * model, struct llama_context_params params);
void llama_free(struct llama_context * ctx);

int32_t llama_decode(struct llama_context * ctx, struct llama_batch batch);

llama_memory_t llama_get_memory(const struct llama_context * ctx);

void llama_memory_clear(llama_memory_t mem, bool data);
bool llama_memory_seq_rm  (llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
void llama_memory_seq_cp  (llama_memory_t mem, llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1);
void llama_memory_seq_keep(llama_memory_t mem, llama_seq_id seq_id);
void llama_memory_seq_add (llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos delta);

llama_pos llama_memory_seq_pos_min(llama_memory_t mem, llama_seq_id seq_id);
llama_pos llama_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id);

size_t llama_state_get_size(struct llama_context * ctx);
size_t llama_state_get_data(struct llama_context * ctx, uint8_t * dst, size_t size);
size_t llama_state_set_data(struct llama_context * ctx, const uint8_t * src, size_t size);

size_t llama_state_seq_get_size(struct llama_context * ctx, llama_seq_id seq_id);
size_t llama_state_seq_get_data(struct llama_context * ctx, uint8_t * dst, size_t size, llama_seq_id seq_id);
size_t llama_state_seq_set_data(struct llama_context * ctx, const uint8_t * src, size_t size, llama_seq_id dest_seq_id);

extern "Python" void fa_set_tensor_data(struct ggml_tensor * tensor, void * userdata);

// of the module itself
bool fa_abort_after(void * data); // true after *data calls
void fa_log_nothing(void);
