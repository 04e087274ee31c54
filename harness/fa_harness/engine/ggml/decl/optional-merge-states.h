// present from the patch on that merges states
struct ggml_tensor * ggml_flash_attn_ext_merge_states(struct ggml_context * ctx, struct ggml_tensor * a, struct ggml_tensor * b);
struct ggml_tensor * ggml_flash_attn_ext_from_state(struct ggml_context * ctx, struct ggml_tensor * state);
