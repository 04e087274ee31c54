// present from the patch on that gives a chain in one graph its edges
struct ggml_tensor * ggml_flash_attn_ext_get_state(struct ggml_context * ctx, struct ggml_tensor * a);
