// attention over parts of the keys: results that are not normalised, new tensors each
struct ggml_tensor * ggml_flash_attn_ext_partial(struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k,
        struct ggml_tensor * v, struct ggml_tensor * mask, struct ggml_tensor * prev, float scale, float max_bias, float logit_softcap);
struct ggml_tensor * ggml_flash_attn_ext_reduce(struct ggml_context * ctx, struct ggml_tensor ** partials, int n_partials);
struct ggml_tensor * ggml_cpy(struct ggml_context * ctx, struct ggml_tensor * a, struct ggml_tensor * b);
