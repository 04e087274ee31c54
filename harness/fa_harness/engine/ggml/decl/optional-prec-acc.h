// the accumulator's precision, since ggml 0.25 for every op
bool ggml_prec_set_acc(struct ggml_tensor * a, enum ggml_prec prec);
