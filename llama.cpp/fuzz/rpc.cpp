// Fuzz target: one connection to the patched rpc-server, in this process, over a transport made of memory.
//
// The input is a little program. Each command takes a few bytes: which buffers there are, tensors that mostly lie in them, graphs
// whose nodes mostly have the shape that ggml's constructor gives them; now and then a byte of the message is changed, or
// bytes are sent as they are. So the checks are passed often enough for the kernels behind them to be reached.
#include "ggml-rpc.cpp"
#include "rpc-validate.cpp"

#include "ggml-cpu.h"

#include <cstdio>
#include <cstdlib>

// -- the transport

struct socket_t::impl {
    const std::vector<uint8_t> * sent;
    size_t                       at = 0;
};

socket_t::socket_t(std::unique_ptr<impl> p) : pimpl(std::move(p)) {}
socket_t::~socket_t() = default;

bool socket_t::recv_data(void * data, size_t size) {
    if (size > pimpl->sent->size() - pimpl->at) {
        pimpl->at = pimpl->sent->size();
        return false;
    }
    if (size > 0) {
        memcpy(data, pimpl->sent->data() + pimpl->at, size);
    }
    pimpl->at += size;
    return true;
}

bool socket_t::send_data(const void * data, size_t size) {
    volatile uint8_t seen = 0; // an answer is read from memory that is there and set
    for (size_t i = 0; i < size; i += 64) {
        seen = seen ^ ((const uint8_t *) data)[i];
    }
    return true;
}

bool socket_t::flush() { return true; }
socket_ptr socket_t::accept() { return nullptr; }
void socket_t::get_caps(uint8_t * caps) { memset(caps, 0, RPC_CONN_CAPS_SIZE); }
void socket_t::update_caps(const uint8_t *) {}
socket_ptr socket_t::create_server(const char *, int) { return nullptr; }

static const std::vector<uint8_t> * next_message = nullptr;

socket_ptr socket_t::connect(const char *, int) {
    return socket_ptr(new socket_t(std::unique_ptr<impl>(new impl { next_message })));
}

bool rpc_transport_init() { return true; }
void rpc_transport_shutdown() {}

// -- the program

static const uint64_t LEASE = 1024 * 1024; // bytes
static const int      MAX_TENSORS = 48;

struct reader {
    const uint8_t * at;
    const uint8_t * end;

    uint8_t byte() { return at < end ? *at++ : 0; }
    uint16_t word() { const uint16_t low = byte(); return low | byte() << 8; }
    bool one_in(int n) { return byte() % n == n - 1; }
};

static const int64_t SIZES[] = { 1, 2, 3, 4, 5, 8, 16, 32, 64, 128, 256, 7, 0, 48, 512, 1000 };
static const int     TYPES[] = { GGML_TYPE_F32, GGML_TYPE_F32, GGML_TYPE_F32, GGML_TYPE_F32, GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_I32, GGML_TYPE_I32,
                                 GGML_TYPE_I64, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, -1 };
static const uint32_t PARAMS[] = { 0, 1, 2, 3, 4, 8, 10, 16, 24, 40, 64, 0x3f800000 /* 1.0 */, 0x3727c5ac /* 1e-5 */, 0x461c4000 /* 10000.0 */, 0xffffffff, 0x7f800000 /* inf */ };

struct program {
    reader               in;
    std::vector<uint8_t> wire;
    int                  n_buffers = 0;

    void put(const void * data, size_t size) { wire.insert(wire.end(), (const uint8_t *) data, (const uint8_t *) data + size); }

    void command(uint8_t cmd, const void * data, uint64_t size) {
        put(&cmd, 1);
        put(&size, sizeof(size));
        put(data, size);
        if (in.one_in(64) && size > 0) { // a message with one byte changed
            wire[wire.size() - 1 - in.word() % size] = in.byte();
        }
    }

    rpc_shape shape() {
        rpc_shape shape = {};
        const int type = TYPES[in.byte() % 16];
        shape.type = type < 0 ? in.byte() : type;
        const uint8_t how = in.byte();
        const uint8_t first = in.byte(), second = in.byte();
        const int64_t ne[] = { SIZES[first & 15], SIZES[first >> 4], SIZES[second & 15], SIZES[second >> 4] };
        const int n_dims = how & 3;
        const bool known = shape.type < GGML_TYPE_COUNT && ggml_blck_size((ggml_type) shape.type) > 0;
        const int64_t block = known ? ggml_blck_size((ggml_type) shape.type) : 1;
        uint64_t stride = known ? ggml_type_size((ggml_type) shape.type) : 4;
        for (int i = 0; i < GGML_MAX_DIMS; i++) {
            shape.ne[i] = i <= n_dims ? ne[i] : 1;
            if (i == 0 && block > 1 && shape.ne[0] % block != 0) {
                shape.ne[0] = block;
            }
            shape.nb[i] = stride;
            stride *= i == 0 ? shape.ne[0] / block : shape.ne[i];
        }
        if ((how >> 2) % 8 == 7) { // permuted
            const int i = in.byte() % 4, j = in.byte() % 4;
            std::swap(shape.ne[i], shape.ne[j]);
            std::swap(shape.nb[i], shape.nb[j]);
        }
        if ((how >> 5) == 7) {
            shape.nb[in.byte() % 4] = in.word();
        }
        return shape;
    }

    rpc_tensor describe(const rpc_shape & shape) {
        rpc_tensor tensor = {};
        tensor.type = shape.type;
        for (int i = 0; i < GGML_MAX_DIMS; i++) {
            tensor.ne[i] = shape.ne[i];
            tensor.nb[i] = shape.nb[i];
        }
        const uint8_t where = in.byte();
        tensor.buffer = 1 + where % std::max(1, n_buffers);
        tensor.data   = (tensor.buffer << RPC_ADDRESS_BITS) + (where >> 4) * 1024;
        if (where == 255) {
            tensor.data += in.word() - 32768;
        }
        tensor.flags = GGML_TENSOR_FLAG_COMPUTE;
        return tensor;
    }

    void allocate() {
        rpc_msg_alloc_buffer_req request = {};
        static const uint64_t sizes[] = { 32768, 65536, 16384, 0, 4096, 1 << 20, 1 << 24, UINT64_MAX };
        request.size = sizes[in.byte() % 8];
        request.remote_ptr = ++n_buffers;
        command(RPC_CMD_ALLOC_BUFFER, &request, sizeof(request));
        rpc_msg_buffer_clear_req clear = { (uint64_t) n_buffers, in.byte() };
        command(RPC_CMD_BUFFER_CLEAR, &clear, sizeof(clear));
    }

    void write_numbers() {
        const rpc_tensor tensor = describe(shape());
        std::vector<uint8_t> message((const uint8_t *) &tensor, (const uint8_t *) (&tensor + 1));
        const uint8_t flag = 0, n = in.byte() % 32;
        const uint64_t offset = in.one_in(8) ? in.word() : 0;
        message.push_back(flag);
        message.insert(message.end(), (const uint8_t *) &offset, (const uint8_t *) (&offset + 1));
        for (int i = 0; i < n; i++) {
            const uint32_t number = in.one_in(4) ? PARAMS[in.byte() % 16] : in.byte() % 4;
            message.insert(message.end(), (const uint8_t *) &number, (const uint8_t *) (&number + 1));
        }
        command(RPC_CMD_SET_TENSOR, message.data(), message.size());
    }

    // the shape of a node as its constructor would make it, if it would
    static void as_constructed(rpc_tensor & tensor, const std::vector<rpc_tensor> & made) {
        ggml_init_params params = { ggml_tensor_overhead() * (GGML_MAX_SRC + 4), nullptr, true };
        ggml_context_ptr ctx { ggml_init(params) };
        ggml_tensor * src[GGML_MAX_SRC] = {};
        const op_sources sources = sources_of(tensor.op);
        rpc_shape own = {};
        own.type = tensor.type;
        for (int d = 0; d < GGML_MAX_DIMS; d++) {
            own.ne[d] = tensor.ne[d];
        }
        for (int i = 0; i < GGML_MAX_SRC; i++) {
            if (tensor.src[i] == 0) {
                if (i < sources.min) {
                    return;
                }
                continue;
            }
            const rpc_tensor & from = made[tensor.src[i] - 1];
            rpc_shape shape = {};
            shape.type = from.type;
            for (int d = 0; d < GGML_MAX_DIMS; d++) {
                shape.ne[d] = from.ne[d];
                shape.nb[d] = from.nb[d];
            }
            if (!rpc_check_shape(shape) || shape.span == 0) {
                return;
            }
            src[i] = rpc_make_leaf(ctx.get(), shape);
        }
        if (tensor.op == GGML_OP_REPEAT || !computes(tensor.op, tensor.op_params, own, src)) {
            return;
        }
        const ggml_tensor * result = construct_or_refuse(ctx.get(), tensor.op, tensor.op_params, own, src);
        if (result != nullptr) {
            tensor.type = result->type;
            for (int d = 0; d < GGML_MAX_DIMS; d++) {
                tensor.ne[d] = result->ne[d];
                tensor.nb[d] = result->nb[d];
            }
        }
    }

    void graph(bool also_again) {
        std::vector<rpc_tensor> tensors;
        std::vector<uint64_t> nodes;
        const int n = 1 + in.byte() % MAX_TENSORS;
        for (int place = 1; place <= n && in.at < in.end; place++) {
            rpc_tensor tensor = describe(shape());
            tensor.id = place;
            if (place > 1 && !in.one_in(3)) {
                tensor.op = in.byte() % 128; // there are fewer operations
                const op_sources sources = sources_of(tensor.op);
                const int n_sources = in.one_in(16) ? in.byte() % (GGML_MAX_SRC + 1) : std::max(0, sources.min + (sources.max > sources.min && in.one_in(2)));
                for (int i = 0; i < n_sources && i < GGML_MAX_SRC; i++) {
                    tensor.src[i] = place - 1 - in.byte() % std::min(place - 1, 8);
                }
                const int n_params = in.byte() % 17;
                for (int i = 0; i < n_params; i++) {
                    tensor.op_params[i] = PARAMS[in.byte() % 16];
                }
                if (!in.one_in(8)) {
                    as_constructed(tensor, tensors);
                }
                tensor.use_count = in.byte() % 3;
                nodes.push_back(place);
            }
            tensors.push_back(tensor);
        }
        if (tensors.empty()) {
            return;
        }
        if (nodes.empty()) {
            nodes.push_back(1);
        }
        const auto packed = pack_graph(in.one_in(64) ? 1 : 0, nodes, tensors);
        command(RPC_CMD_GRAPH_COMPUTE, packed.data(), packed.size());
        if (also_again) {
            rpc_msg_graph_recompute_req request = { 0 };
            command(RPC_CMD_GRAPH_RECOMPUTE, &request, sizeof(request));
        }
    }

    void tensor_command() {
        const rpc_tensor tensor = describe(shape());
        const uint64_t offset = in.one_in(4) ? in.word() : 0, size = in.word() % 4096;
        switch (in.byte() % 8) {
            case 0: { rpc_msg_memset_tensor_req r = { tensor, offset, size, in.byte() }; command(RPC_CMD_MEMSET_TENSOR, &r, sizeof(r)); break; }
            case 1: { rpc_msg_get_tensor_req r = { tensor, offset, size }; command(RPC_CMD_GET_TENSOR, &r, sizeof(r)); break; }
            case 2: { rpc_msg_copy_tensor_req r = { tensor, describe(shape()) }; command(RPC_CMD_COPY_TENSOR, &r, sizeof(r)); break; }
            case 3: { rpc_msg_copy_tensor_req r = { tensor, describe(shape()) }; command(RPC_CMD_COPY_TENSOR_ASYNC, &r, sizeof(r)); break; }
            case 4: { rpc_msg_init_tensor_req r = { tensor }; command(RPC_CMD_INIT_TENSOR, &r, sizeof(r)); break; }
            case 5: { rpc_msg_set_tensor_hash_req r = { tensor, offset, size }; command(RPC_CMD_SET_TENSOR_HASH, &r, sizeof(r)); break; }
            case 6: {
                rpc_msg_get_alloc_size_req r = {};
                r.tensor = tensor;
                r.tensor.op = in.byte() % 128;
                for (int i = 0; i < in.byte() % 4; i++) {
                    r.srcs[i] = describe(shape());
                    r.srcs[i].id = i;
                }
                command(RPC_CMD_GET_ALLOC_SIZE, &r, sizeof(r));
                break;
            }
            default: { rpc_msg_push_req r = { tensor, 1, offset, size }; command(in.one_in(2) ? RPC_CMD_PUSH_TENSOR : RPC_CMD_PUSH_AWAIT, &r, sizeof(r)); break; }
        }
    }

    void files() {
        rpc_msg_load_file file = {};
        memset(file.digest, 'a', sizeof(file.digest));
        file.size = 65536;
        if (in.one_in(2)) {
            rpc_msg_map_file_req request = {};
            request.remote_ptr = ++n_buffers;
            request.file = file;
            request.first = in.byte() % 8 * 4096;
            request.last = in.word() + 1;
            request.max_tensor_size = in.word();
            command(RPC_CMD_MAP_FILE, &request, sizeof(request));
            return;
        }
        const uint32_t counts[2] = { 1, (uint32_t) in.byte() % 3 };
        std::vector<uint8_t> message((const uint8_t *) counts, (const uint8_t *) (counts + 2));
        message.insert(message.end(), (const uint8_t *) &file, (const uint8_t *) (&file + 1));
        for (uint32_t i = 0; i < counts[1]; i++) {
            const rpc_tensor tensor = describe(shape());
            rpc_msg_load_tensor entry = {};
            entry.buffer = tensor.buffer;
            entry.data   = tensor.data;
            entry.type   = tensor.type;
            memcpy(entry.ne, tensor.ne, sizeof(entry.ne));
            entry.offset = in.word();
            std::vector<uint8_t> zeros(RPC_SAMPLE_SIZE, 0); // the file is of zeros
            entry.sample = rpc_sample(zeros.data(), zeros.data(), in.one_in(2) ? RPC_SAMPLE_SIZE : in.byte() % RPC_SAMPLE_SIZE);
            message.insert(message.end(), (const uint8_t *) &entry, (const uint8_t *) (&entry + 1));
        }
        command(RPC_CMD_LOAD_TENSORS, message.data(), message.size());
    }

    void small() {
        uint8_t bytes[16];
        memset(bytes, 0, sizeof(bytes));
        const uint64_t number = in.byte() % 4;
        memcpy(bytes, &number, sizeof(number));
        static const uint8_t cmds[] = { RPC_CMD_FREE_BUFFER, RPC_CMD_BUFFER_GET_BASE, RPC_CMD_GET_DEVICE_MEMORY, RPC_CMD_GET_ALIGNMENT, RPC_CMD_GET_MAX_SIZE,
                                        RPC_CMD_DEVICE_COUNT, RPC_CMD_GRAPH_RECOMPUTE, RPC_CMD_PUSH_ACCEPT };
        static const uint8_t sizes[] = { 8, 8, 4, 4, 4, 0, 4, 8 };
        const int which = in.byte() % 8;
        command(cmds[which], bytes, sizes[which]);
    }

    void as_it_is(uint8_t cmd, size_t most) {
        const size_t n = std::min<size_t>(in.end - in.at, most);
        const uint8_t * bytes = in.at;
        in.at += n;
        command(cmd, bytes, n);
    }

    void run() {
        rpc_msg_hello_req hello = {};
        const uint8_t cmd = RPC_CMD_HELLO;
        const uint64_t size = sizeof(hello);
        put(&cmd, 1);
        put(&size, sizeof(size));
        put(&hello, size);
        allocate();
        while (in.at < in.end) {
            switch (in.byte() % 16) {
                case 0:  allocate();       break;
                case 1:
                case 2:
                case 3:  write_numbers();  break;
                case 4:
                case 5:  tensor_command(); break;
                case 6:  files();          break;
                case 7:  small();          break;
                case 8: { // as it is
                    const uint8_t cmd = in.byte() % (RPC_CMD_COUNT + 2), most = in.byte();
                    as_it_is(cmd, most);
                    break;
                }
                case 9: { // a graph as it is
                    as_it_is(RPC_CMD_GRAPH_COMPUTE, in.byte());
                    break;
                }
                default: graph(in.one_in(2)); break;
            }
        }
    }
};

static std::vector<ggml_backend_t> make_backends() {
    char folder[] = "/tmp/mesh-fuzz-XXXXXX";
    if (mkdtemp(folder) == nullptr) {
        abort();
    }
    const std::string path = std::string(folder) + "/weights", list = std::string(folder) + "/list";
    std::ofstream(path, std::ios::binary) << std::string(65536, '\0');
    std::ofstream(list) << std::string(64, 'a') << " 65536 " << path << "\n";
    setenv("GGML_RPC_FILES", list.c_str(), 1);
    setenv("GGML_RPC_MEMORY", std::to_string(LEASE).c_str(), 1);
    static std::string remove = folder;
    atexit([] {
        std::error_code ec;
        fs::remove_all(remove, ec);
    });
    ggml_log_set([](enum ggml_log_level, const char *, void *) {}, nullptr);
    rpc_validate_init(1);
    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, 1);
    return { backend };
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static const auto & backends = *new std::vector<ggml_backend_t>(make_backends());
    if (size > 4096) {
        return 0;
    }
    program program = { { data, data + size }, {}, 0 };
    program.run();
    next_message = &program.wire;
    rpc_serve_guarded(backends, nullptr, socket_t::connect(nullptr, 0));
    return 0;
}
