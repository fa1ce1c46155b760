// Runs a fuzz target without libFuzzer: on the kept inputs, then on blind mutations of them.
//
//     driver EXECUTIONS SECONDS SEED CRASH_FILE [INPUT ...]
//
// 0 executions: only the inputs; 0 seconds: no bound. An input that ends the process is written to CRASH_FILE.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include <signal.h>
#include <unistd.h>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);
extern "C" void __sanitizer_set_death_callback(void (*callback)());

using input = std::vector<uint8_t>;

static const unsigned LONGEST_SECONDS = 20; // of one input: more is a hang
static const size_t   MAX_INPUT       = 4096;

static input      & current = *new input; // outlives what runs at the exit
static const char * crash_file;

static void keep() {
    FILE * file = fopen(crash_file, "wb");
    if (file != nullptr) {
        fwrite(current.data(), 1, current.size(), file);
        fclose(file);
    }
}

static void on_signal(int number) {
    keep();
    signal(number, SIG_DFL);
    raise(number);
}

static void execute(const input & data) {
    current = data;
    alarm(LONGEST_SECONDS);
    LLVMFuzzerTestOneInput(current.data(), current.size());
    alarm(0);
}

static input mutated(const std::vector<input> & corpus, std::mt19937_64 & rng) {
    input data = corpus[rng() % corpus.size()];
    for (int n = 1 + rng() % 8; n > 0; n--) {
        const size_t at = data.empty() ? 0 : rng() % data.size();
        switch (rng() % 6) {
            case 0: data.insert(data.begin() + at, (uint8_t) rng()); break;
            case 1: if (!data.empty()) { data.erase(data.begin() + at); } break;
            case 2: if (!data.empty()) { data[at] ^= 1 << rng() % 8; } break;
            case 3: if (!data.empty()) { data[at] = (uint8_t) rng(); } break;
            case 4: { // a part of another one
                const input & other = corpus[rng() % corpus.size()];
                if (!other.empty()) {
                    const size_t from = rng() % other.size(), count = rng() % std::min<size_t>(64, other.size() - from + 1);
                    data.insert(data.begin() + at, other.begin() + from, other.begin() + from + count);
                }
                break;
            }
            default: { // a part once more
                const input copy(data.begin() + at, data.begin() + std::min(data.size(), at + 1 + rng() % 64));
                data.insert(data.begin() + at, copy.begin(), copy.end());
                break;
            }
        }
    }
    data.resize(std::min(data.size(), MAX_INPUT));
    return data;
}

int main(int argc, char ** argv) {
    if (argc < 5) {
        fprintf(stderr, "usage: %s EXECUTIONS SECONDS SEED CRASH_FILE [INPUT ...]\n", argv[0]);
        return 2;
    }
    const uint64_t executions = strtoull(argv[1], nullptr, 10);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(strtoull(argv[2], nullptr, 10));
    const bool timed = strtoull(argv[2], nullptr, 10) > 0;
    std::mt19937_64 rng(strtoull(argv[3], nullptr, 10));
    crash_file = argv[4];
    __sanitizer_set_death_callback(keep);
    signal(SIGABRT, on_signal);
    signal(SIGALRM, on_signal);
    std::vector<input> corpus = { input(64, 0) };
    for (int i = 5; i < argc; i++) {
        std::ifstream file(argv[i], std::ios::binary);
        corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    for (const input & data : corpus) {
        execute(data);
    }
    uint64_t done = 0;
    for (; done < executions && (!timed || std::chrono::steady_clock::now() < end); done++) {
        execute(mutated(corpus, rng));
        if (done % 10000 == 0) {
            printf("#%llu\n", (unsigned long long) (done + corpus.size()));
            fflush(stdout);
        }
    }
    printf("#%llu DONE\n", (unsigned long long) (done + corpus.size()));
    return 0;
}
