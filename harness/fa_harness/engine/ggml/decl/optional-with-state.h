// present from the first patch of the series on
struct ggml_tensor * ggml_flash_attn_ext_with_state(struct ggml_context * ctx,
        struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * v, struct ggml_tensor * mask,
        struct ggml_tensor * state, float scale, float max_bias, float logit_softcap);
