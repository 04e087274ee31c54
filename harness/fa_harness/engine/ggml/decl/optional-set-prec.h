// the accumulator's precision of this op only, older and now deprecated
void ggml_flash_attn_ext_set_prec(struct ggml_tensor * a, enum ggml_prec prec);
