// what one of the others has set
enum ggml_prec ggml_flash_attn_ext_get_prec(const struct ggml_tensor * a);
