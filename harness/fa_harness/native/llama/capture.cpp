// Runs a model on the CPU and writes what its flash attention gets and gives, layer by layer.
//
// The output is a line of JSON about the model, then for each captured call a line of JSON and the
// rows of its tensors as they are (a row may be quantised), in ggml's order and without gaps; at the
// end a line {"end":true}. `fa_harness/captures.py` reads it.

#include "ggml-backend.h"
#include "ggml.h"
#include "llama-cpp.h"
#include "llama.h"

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

// the call is wrong, not the environment
struct usage_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

static std::string format(const char * fmt, ...) {
    char buffer[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(buffer, sizeof(buffer), fmt, args);
    va_end(args);
    return buffer;
}

struct options {
    std::string model;
    std::string text;
    std::string output;

    std::set<int> layers;  // none: the first layer of each mask
    bool all_layers = false;
    bool all_steps  = false;  // every batch of the prompt and every step, not the last ones only

    int n_token   = 640;
    int n_decode  = 1;
    int n_ubatch  = 0;  // 0: n_token
    int n_threads = 1;

    ggml_type type_k = GGML_TYPE_F16;
    ggml_type type_v = GGML_TYPE_F16;

    ggml_type type_k_cold = GGML_TYPE_COUNT;
    ggml_type type_v_cold = GGML_TYPE_COUNT;
    int       n_hot       = 0;  // tokens in the types above, where older ones have other types

    bool repack = true;
};

static int to_int(const std::string & text) {
    size_t end = 0;
    int    n   = -1;
    try {
        n = std::stoi(text, &end);
    } catch (const std::exception &) {
        end = 0;
    }
    if (text.empty() || end != text.size() || n < 0) {
        throw usage_error("'" + text + "' is not a number");
    }
    return n;
}

static ggml_type to_type(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const ggml_type type = (ggml_type) i;
        if (ggml_type_name(type) && name == ggml_type_name(type)) {
            return type;
        }
    }
    throw usage_error("type '" + name + "' is unknown");
}

static options parse(int argc, char ** argv) {
    options opt;
    std::vector<std::string> files;
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        if (name == "--no-repack") {
            opt.repack = false;
        } else if (name == "--all-steps") {
            opt.all_steps = true;
        } else if (name.rfind("--", 0) != 0) {
            files.push_back(name);
        } else if (i + 1 == argc) {
            throw usage_error(name + " needs a value");
        } else {
            const std::string value = argv[++i];
            if (name == "--layers" && value == "all") {
                opt.all_layers = true;
            } else if (name == "--layers") {
                for (size_t start = 0; start <= value.size();) {
                    const size_t comma = std::min(value.find(',', start), value.size());
                    opt.layers.insert(to_int(value.substr(start, comma - start)));
                    start = comma + 1;
                }
            } else if (name == "--tokens")  { opt.n_token   = to_int(value);
            } else if (name == "--decode")  { opt.n_decode  = to_int(value);
            } else if (name == "--ubatch")  { opt.n_ubatch  = to_int(value);
            } else if (name == "--threads") { opt.n_threads = to_int(value);
            } else if (name == "--type-k")  { opt.type_k    = to_type(value);
            } else if (name == "--type-v")  { opt.type_v    = to_type(value);
            } else if (name == "--type-k-cold") { opt.type_k_cold = to_type(value);
            } else if (name == "--type-v-cold") { opt.type_v_cold = to_type(value);
            } else if (name == "--hot")     { opt.n_hot     = to_int(value);
            } else {
                throw usage_error("option " + name + " is unknown");
            }
        }
    }
    if (files.size() != 3) {
        throw usage_error("usage: fa-harness-capture MODEL TEXT OUTPUT [--layers 0,5|all] [--all-steps] [--tokens N] "
                          "[--decode N] [--ubatch N] [--type-k T] [--type-v T] [--type-k-cold T] [--type-v-cold T] "
                          "[--hot N] [--threads N] [--no-repack]");
    }
    opt.model  = files[0];
    opt.text   = files[1];
    opt.output = files[2];
    if (opt.n_token < 1 || opt.n_threads < 1) {
        throw usage_error("--tokens and --threads must be at least 1");
    }
    if (opt.n_ubatch == 0) {
        opt.n_ubatch = opt.n_token;
    }
    return opt;
}

// what is captured, and where it goes
struct capture {
    std::ofstream out;

    // Nodes do not say which layer they belong to: the n-th attention of a graph is that of the
    // name that its result has, kqv_out-LAYER. The first graph is looked at and not captured.
    bool                       learning = true;
    std::vector<int>           layer_of;  // of the n-th attention of a graph
    std::vector<const void *>  mask_of;
    std::set<int>              wanted;

    size_t      n_seen    = 0;   // attentions of this graph so far
    std::string phase;           // of what is written; empty: nothing is
    int         position  = 0;   // of the first token of the batch
    int         n_threads = 1;

    // what is known of an attention of two parts until its result is there: by then the memory of Q may have
    // another tensor
    std::string head;
    std::string rows;

    bool on_node(const ggml_tensor * node, bool ask);
    void begin(const ggml_tensor * node, int layer);
    void end(const ggml_tensor * result, int layer);
    void add(const char * name, const ggml_tensor * t, int layer);
};

// The calls of a series that this program may be built without.
static bool is_op(const ggml_tensor * node, const char * name) {
    return strcmp(ggml_op_name(node->op), name) == 0;
}

// the older keys, where `node` goes on with a second part; they have been computed
static const ggml_tensor * first_part(const ggml_tensor * node) {
    return is_op(node, "FLASH_ATTN_EXT_PARTIAL") ? node->src[5] : nullptr;
}

static bool on_node(ggml_tensor * node, bool ask, void * data) {
    return ((capture *) data)->on_node(node, ask);
}

bool capture::on_node(const ggml_tensor * node, bool ask) {
    const bool is_result = is_op(node, "FLASH_ATTN_EXT_REDUCE");
    if (!ask) {
        const int layer = layer_of[n_seen - 1];
        if (!is_result) {
            begin(node, layer);
        }
        if (is_result || node->op == GGML_OP_FLASH_ATTN_EXT) {
            end(node, layer);
        }
        return true;
    }
    int layer = -1;
    if (learning && sscanf(node->name, "kqv_out-%d", &layer) == 1 && !layer_of.empty() && layer_of.back() < 0) {
        layer_of.back() = layer;
    }
    const bool is_attention = node->op == GGML_OP_FLASH_ATTN_EXT || first_part(node);
    if (learning && is_attention) {
        layer_of.push_back(-1);
        mask_of.push_back(node->src[3]);
    }
    if (learning || !(is_attention || is_result)) {
        return false;
    }
    const size_t i = is_result ? n_seen - 1 : n_seen++;
    return !phase.empty() && i < layer_of.size() && wanted.count(layer_of[i]);
}

void capture::add(const char * name, const ggml_tensor * t, int layer) {
    if (t->nb[0] != ggml_type_size(t->type) || !t->data || (t->buffer && !ggml_backend_buffer_is_host(t->buffer))) {
        throw std::runtime_error(format("layer %d: the rows of %s do not lie in memory as rows", layer, name));
    }
    const size_t row_size = ggml_row_size(t->type, t->ne[0]);
    head += format("%s{\"name\":\"%s\",\"type\":\"%s\",\"row_bytes\":%zu,", rows.empty() ? "" : ",", name,
                   ggml_type_name(t->type), row_size);
    head += format("\"ne\":[%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64 "]}", t->ne[0], t->ne[1], t->ne[2], t->ne[3]);
    for (int64_t i3 = 0; i3 < t->ne[3]; ++i3) {
        for (int64_t i2 = 0; i2 < t->ne[2]; ++i2) {
            for (int64_t i1 = 0; i1 < t->ne[1]; ++i1) {
                rows.append((const char *) t->data + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3], row_size);
            }
        }
    }
}

void capture::begin(const ggml_tensor * node, int layer) {
    static const char * names[] = { "q", "k", "v", "mask", "sinks" };
    static const char * cold[]  = { "q", "k_cold", "v_cold", "mask_cold" };

    float params[3];  // scale, max_bias, logit_softcap
    memcpy(params, node->op_params, sizeof(params));
    const ggml_tensor * k = node->src[1];
    const ggml_tensor * v = node->src[2];
    const bool v_in_k = v->data == k->data && v->nb[1] == k->nb[1] && v->nb[2] == k->nb[2];

    rows.clear();
    head = format("{\"layer\":%d,\"phase\":\"%s\",\"position\":%d,\"threads\":%d,", layer, phase.c_str(), position, n_threads);
    head += format("\"scale\":%.9g,\"max_bias\":%.9g,\"logit_softcap\":%.9g,", params[0], params[1], params[2]);
    head += format("\"prec\":\"%s\",", node->op_params[3] == GGML_PREC_F32 ? "f32" : "def");
    head += format("\"v_is_view_of_k\":%s,\"tensors\":[", v_in_k ? "true" : "false");
    for (int i = 0; i < 5; ++i) {
        if (node->src[i]) {
            add(names[i], node->src[i], layer);
        }
    }
    if (const ggml_tensor * first = first_part(node)) {
        if (first->src[5] || first->src[4] || first->src[0] != node->src[0] || memcmp(first->op_params, node->op_params, sizeof(params))) {
            throw std::runtime_error(format("layer %d: the parts of its attention do not belong together", layer));
        }
        for (int i = 1; i < 4; ++i) {
            if (first->src[i]) {
                add(cold[i], first->src[i], layer);
            }
        }
    }
}

void capture::end(const ggml_tensor * result, int layer) {
    add("out", result, layer);
    out << head << "]}\n" << rows;
}

static std::string list_of(const std::vector<int> & numbers) {
    std::string text;
    for (const int n : numbers) {
        text += (text.empty() ? "" : ", ") + std::to_string(n);
    }
    return text.empty() ? "none" : text;
}

// take the layers that were asked for; of none, the first of each mask
static void choose_layers(capture & cap, const std::set<int> & asked, bool all) {
    for (const int layer : asked) {
        if (std::find(cap.layer_of.begin(), cap.layer_of.end(), layer) == cap.layer_of.end()) {
            throw usage_error(format("layer %d: computes no flash attention; those that do: ", layer) +
                              list_of(cap.layer_of));
        }
    }
    cap.wanted = all ? std::set<int>(cap.layer_of.begin(), cap.layer_of.end()) : asked;
    std::set<const void *> masks;
    for (size_t i = 0; asked.empty() && !all && i < cap.layer_of.size(); ++i) {
        if (masks.insert(cap.mask_of[i]).second) {
            cap.wanted.insert(cap.layer_of[i]);
        }
    }
    if (cap.wanted.empty()) {
        throw std::runtime_error("the model computes no flash attention");
    }
}

static std::vector<llama_token> tokens_of(const llama_model * model, const options & opt) {
    std::ifstream file(opt.text, std::ios::binary);
    if (!file) {
        throw usage_error("cannot read " + opt.text);
    }
    const std::string text{ std::istreambuf_iterator<char>(file), {} };
    const llama_vocab * vocab = llama_model_get_vocab(model);
    std::vector<llama_token> tokens(text.size() + 8);
    const int n = llama_tokenize(vocab, text.data(), (int32_t) text.size(), tokens.data(), (int32_t) tokens.size(),
                                 /*add_special =*/ true, /*parse_special =*/ false);
    if (n < opt.n_token) {
        throw usage_error(format("the text has %d tokens, and %d are wanted", std::max(n, 0), opt.n_token));
    }
    tokens.resize(opt.n_token);
    return tokens;
}

static void decode(llama_context * ctx, capture & cap, llama_token * tokens, int n) {
    cap.n_seen = 0;
    if (llama_decode(ctx, llama_batch_get_one(tokens, n)) != 0) {
        throw std::runtime_error("llama_decode failed");
    }
    cap.position += n;
}

// A llama.cpp without the series has no such fields.
template <typename T>
static auto set_parts(T & cparams, const options & opt, int) -> decltype((void) cparams.n_kv_hot) {
    cparams.type_k_cold = opt.type_k_cold;
    cparams.type_v_cold = opt.type_v_cold;
    cparams.n_kv_hot    = opt.n_hot;
}

template <typename T>
static void set_parts(T &, const options & opt, long) {
    if (opt.n_hot) {
        throw usage_error("this llama.cpp has no KV cache of two types; it needs the series mixed");
    }
}

static std::string name_of(const options & opt, const char * phase, int i, bool is_last) {
    return opt.all_steps ? format("%s-%d", phase, i) : is_last ? phase : "";
}

static void run(const options & opt) {
    llama_backend_init();

    llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers    = 0;
    mparams.use_extra_bufts = opt.repack;
    llama_model_ptr model(llama_model_load_from_file(opt.model.c_str(), mparams));
    if (!model) {
        throw std::runtime_error("cannot load the model " + opt.model);
    }
    std::vector<llama_token> tokens = tokens_of(model.get(), opt);

    capture cap;
    cap.n_threads = opt.n_threads;

    llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx             = opt.n_token + opt.n_decode;
    cparams.n_batch           = opt.n_ubatch;
    cparams.n_ubatch          = opt.n_ubatch;
    cparams.n_threads         = opt.n_threads;
    cparams.n_threads_batch   = opt.n_threads;
    cparams.flash_attn_type   = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    cparams.type_k            = opt.type_k;
    cparams.type_v            = opt.type_v;
    set_parts(cparams, opt, 0);
    cparams.swa_full          = false;  // a sliding window is a ring, as in the programs of llama.cpp
    cparams.cb_eval           = on_node;
    cparams.cb_eval_user_data = &cap;
    llama_context_ptr ctx(llama_init_from_model(model.get(), cparams));
    if (!ctx) {
        throw std::runtime_error("cannot make a context; the lines before say why");
    }

    decode(ctx.get(), cap, tokens.data(), 1);
    llama_memory_clear(llama_get_memory(ctx.get()), true);
    cap.learning = false;
    cap.position = 0;
    choose_layers(cap, opt.layers, opt.all_layers);

    cap.out.open(opt.output, std::ios::binary);
    cap.out << format("{\"stream\":1,\"n_layer\":%d,\"n_swa\":%d}\n", llama_model_n_layer(model.get()),
                      llama_model_n_swa(model.get()));

    for (int start = 0; start < opt.n_token; start += opt.n_ubatch) {
        const int n = std::min(opt.n_ubatch, opt.n_token - start);
        cap.phase = name_of(opt, "prefill", start/opt.n_ubatch + 1, start + n == opt.n_token);
        decode(ctx.get(), cap, tokens.data() + start, n);
    }
    for (int step = 0; step < opt.n_decode; ++step) {
        const float * logits  = llama_get_logits_ith(ctx.get(), -1);
        const int     n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
        llama_token   token   = (llama_token) (std::max_element(logits, logits + n_vocab) - logits);
        cap.phase = name_of(opt, "decode", step + 1, step + 1 == opt.n_decode);
        decode(ctx.get(), cap, &token, 1);
    }
    cap.out << "{\"end\":true}\n";
    cap.out.close();
    if (!cap.out) {
        throw std::runtime_error("cannot write " + opt.output);
    }
}

static void log_warnings(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

int main(int argc, char ** argv) {
    llama_log_set(log_warnings, nullptr);
    try {
        run(parse(argc, argv));
    } catch (const usage_error & error) {
        fprintf(stderr, "fa-harness-capture: %s\n", error.what());
        return 2;
    } catch (const std::exception & error) {
        fprintf(stderr, "fa-harness-capture: %s\n", error.what());
        return 1;
    }
    return 0;
}
