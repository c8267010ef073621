// A block's threads are fibers, 32 to a warp. A thread runs until it meets others, then the next lane of its warp has its turn, and when no
// lane of the warp can go on, the next warp. So a shuffle of a warp costs 32 switches, and whoever waits in vain is found at once: if
// nobody can go on and somebody waits, then a thread that is waited for has ended or waits elsewhere.
#include "block.h"

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fibers.h"
#include "image.h"
#include "memory.h"

namespace emu {

Place* current;
uint3 block_index;
dim3 block_size, grid_size;
unsigned char* dynamic_shared;

namespace {

constexpr unsigned FULL = 0xffffffffu;

struct Warp;

// As long as a line of the cache: a switch touches one thread's line and the next one's.
struct alignas(64) Thread : Place {
    Fiber fiber;
    Warp* warp;
    unsigned bit;     // of its position, which is its turn in the warp; lane numbers run against positions in reverse
    unsigned behind;  // positions behind it
    bool waited;      // for the kernel before
};

struct Warp {
    Thread* first;
    unsigned number;    // its turn in the block
    unsigned exists;    // positions with a thread
    unsigned ready;     // positions whose threads can go on
    unsigned met;       // positions that wait for the rest of the warp
    unsigned barred;    // positions that wait for the block
    Meeting what;       // where those of `met` wait
    unsigned phase;     // counts meetings; two buffers suffice, for nobody is two meetings ahead of another
    alignas(64) unsigned words[2][32];
    unsigned a[2][32][4], b[2][32][2];
    float product[2][16][8];
};

// The kernel that runs; there is one at most.
struct Running {
    const Kernel* kernel;
    const void* arguments;
    unsigned threads, warps;
    unsigned ready_warps;  // those with a ready thread
    unsigned at_barrier;   // threads that wait for the block
    std::size_t dynamic_bytes;
    bool early, reverse;
    Fault fault;
    Fiber host;
    pthread_t runner;
    bool active = false;
} running;

Thread threads[MOST_THREADS];
Warp warps[MOST_THREADS / 32];
unsigned begun = 0;  // threads that have a fiber which rests at the end of its body

Thread& self() { return *static_cast<Thread*>(current); }

const char* name_of(Meeting what) {
    static const char* const names[] = {"", "__syncwarp", "__shfl_sync", "__shfl_xor_sync", "__shfl_down_sync", "__shfl_up_sync",
                                        "__ballot_sync", "the tensor product mma"};
    return names[what];
}

inline void switch_to(Thread& from, Thread& to) {
    current = &to;
    fiber_switch(from.fiber, to.fiber);
}

[[noreturn]] void leave() {
    Fiber abandoned;
    fiber_switch(abandoned, running.host);
    __builtin_unreachable();
}

// The first set bit of those that are behind, or else of all.
unsigned next_bit(unsigned bits, unsigned behind) { return unsigned(__builtin_ctz((bits & behind) != 0 ? bits & behind : bits)); }

// Gives the turn to another warp, or back to the host when the block has ended. No thread of the caller's warp can go on.
__attribute__((noinline)) void leave_warp(Thread& me) {
    Warp* warp = me.warp;
    if (warp->met != 0) {
        unsigned missing = warp->exists & ~warp->met;
        if (warp->exists != FULL)
            fault(LAUNCH_FAILED, "%s of all 32 lanes in a warp that has %d threads", name_of(warp->what), __builtin_popcount(warp->exists));
        fault(LAUNCH_FAILED, "%d lanes of a warp wait in %s for %d that %s", __builtin_popcount(warp->met), name_of(warp->what),
              __builtin_popcount(missing), warp->barred != 0 ? "wait in __syncthreads or have ended" : "have ended");
    }
    running.ready_warps &= ~(1u << warp->number);
    if (running.ready_warps != 0) {
        Warp& next = warps[next_bit(running.ready_warps, ~1u << warp->number)];
        return switch_to(me, next.first[__builtin_ctz(next.ready)]);
    }
    if (running.at_barrier != 0)
        fault(LAUNCH_FAILED, "%u of %u threads wait in __syncthreads for threads that have ended", running.at_barrier, running.threads);
    current = nullptr;
    fiber_switch(me.fiber, running.host);
}

// Gives the turn to a thread that can go on. The caller is no longer ready.
inline void yield(Thread& me) {
    Warp* warp = me.warp;
    if (__builtin_expect(warp->ready == 0, 0)) return leave_warp(me);
    switch_to(me, warp->first[next_bit(warp->ready, me.behind)]);
}

// What every fiber does: one thread of one block after the other.
void body() {
    for (;;) {
        running.kernel->run(running.arguments);
        Thread& me = self();
        if (running.early && !me.waited) fault(LAUNCH_FAILED, "a thread that may have begun early ended and never waited for the kernel before");
        me.warp->ready &= ~me.bit;
        yield(me);
    }
}

// The product of a warp's fragments. With g = lane / 4 and t = lane % 4, as the PTX ISA lays them for m16n8k16 of 16-bit values:
// a, 16 x 16 by rows:   register 0 holds (g, 2t) and (g, 2t+1), the lower half first; register 1 (g+8, 2t..); 2 (g, 2t+8..); 3 (g+8, 2t+8..);
// b, 16 x 8 by columns: register 0 holds (2t, g) and (2t+1, g); register 1 (2t+8, g) and (2t+9, g);
// c, 16 x 8:            c0 and c1 are (g, 2t) and (g, 2t+1); c2 and c3 are (g+8, 2t) and (g+8, 2t+1).
// Products of bfloat16 are exact in float; sums run with ascending k from zero, and c is added last.
void multiply(const unsigned (&a)[32][4], const unsigned (&b)[32][2], float (&product)[16][8]) {
    auto number = [](unsigned bits) {
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    };
    auto low = [&](unsigned pair) { return number(pair << 16); };
    auto high = [&](unsigned pair) { return number(pair & 0xffff0000u); };
    float left[16][16], right[16][8];
    for (unsigned lane = 0; lane < 32; lane++) {
        unsigned g = lane / 4, t = lane % 4;
        for (unsigned r = 0; r < 4; r++) {
            float* at = &left[g + 8 * (r & 1)][2 * t + 8 * (r / 2)];
            at[0] = low(a[lane][r]);
            at[1] = high(a[lane][r]);
        }
        for (unsigned r = 0; r < 2; r++) {
            right[2 * t + 8 * r][g] = low(b[lane][r]);
            right[2 * t + 8 * r + 1][g] = high(b[lane][r]);
        }
    }
    for (unsigned m = 0; m < 16; m++) {
        float sums[8] = {};
        for (unsigned k = 0; k < 16; k++)
            for (unsigned n = 0; n < 8; n++) sums[n] += left[m][k] * right[k][n];
        std::memcpy(product[m], sums, sizeof sums);
    }
}

[[noreturn]] __attribute__((noinline)) void mistaken(const Warp& warp, unsigned mask, Meeting what) {
    if (mask != FULL) fault(LAUNCH_FAILED, "%s with the mask %#x; only 0xffffffff is offered", name_of(what), mask);
    fault(LAUNCH_FAILED, "lanes of a warp meet in %s and in %s at the same time", name_of(warp.what), name_of(what));
}

// Waits until all 32 lanes of the warp are here. Whoever comes last goes on at once.
inline void assemble(Thread& me, unsigned mask, Meeting what) {
    Warp& warp = *me.warp;
    if (__builtin_expect(mask != FULL || (warp.met != 0 && warp.what != what), 0)) mistaken(warp, mask, what);
    warp.what = what;
    warp.met |= me.bit;
    warp.ready &= ~me.bit;
    if (warp.met != FULL) return yield(me);
    if (what == MMA) multiply(warp.a[warp.phase & 1], warp.b[warp.phase & 1], warp.product[warp.phase & 1]);
    warp.ready = FULL;
    warp.met = 0;
    warp.phase++;
}

// Lays the threads of a block out, in the order of their turns, and gives them fibers.
void lay_out(bool reverse) {
    unsigned n = running.threads;
    running.warps = (n + 31) / 32;
    for (unsigned w = 0; w < running.warps; w++) {
        unsigned logical = reverse ? running.warps - 1 - w : w;
        unsigned lanes = n - logical * 32 < 32 ? n - logical * 32 : 32;
        Warp& warp = warps[w];
        warp.first = &threads[w * 32];
        warp.number = w;
        warp.exists = lanes == 32 ? FULL : (1u << lanes) - 1;
        for (unsigned p = 0; p < lanes; p++) {
            unsigned lane = reverse ? lanes - 1 - p : p, index = logical * 32 + lane;
            Thread& thread = warp.first[p];
            thread.lane = lane;
            thread.bit = 1u << p;
            thread.behind = ~1u << p;
            thread.warp = &warp;
            thread.index = {index % block_size.x, index / block_size.x % block_size.y, index / (block_size.x * block_size.y)};
        }
    }
    for (; begun < running.warps * 32; begun++) fiber_begin(threads[begun].fiber, begun, body);
}

// Everybody is ready.
void begin_block() {
    running.ready_warps = running.warps == 32 ? FULL : (1u << running.warps) - 1;
    running.at_barrier = 0;
    for (unsigned w = 0; w < running.warps; w++) {
        warps[w].ready = warps[w].exists;
        warps[w].met = warps[w].barred = 0;
    }
    for (unsigned t = 0; t < running.warps * 32; t++) threads[t].waited = false;
}

// The dynamic shared memory lies against a guard page, so that what lies behind it is a fault.
unsigned char* shared_memory(std::size_t bytes) {
    constexpr std::size_t MOST = 256 * 1024;
    static unsigned char* end = nullptr;
    if (end == nullptr) {
        std::size_t guard = std::size_t(sysconf(_SC_PAGESIZE));
        void* at = mmap(nullptr, MOST + guard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED || mprotect(static_cast<unsigned char*>(at) + MOST, guard, PROT_NONE) != 0) {
            std::perror("emulated driver: no shared memory");
            std::abort();
        }
        end = static_cast<unsigned char*>(at) + MOST;
    }
    return end - (bytes + 15) / 16 * 16;
}

void* faulting_address;

[[noreturn]] void landed() {
    if (fiber_overflowed(faulting_address)) fault(LAUNCH_FAILED, "more than %zu bytes of stack", FIBER_STACK);
    fault(ILLEGAL_ADDRESS, "%s", describe_address(faulting_address).c_str());
}

// A memory fault of the running kernel becomes its fault; any other goes where it would have gone without the emulator.
struct sigaction before_segv, before_bus;

void on_memory_fault(int signal, siginfo_t* info, void* context) {
    if (!running.active || !pthread_equal(pthread_self(), running.runner) || current == nullptr) {
        sigaction(signal, signal == SIGSEGV ? &before_segv : &before_bus, nullptr);
        return;
    }
    faulting_address = info->si_addr;
    fiber_divert(context, landed);
}

// Catches memory faults while it lives, on a signal stack of its own: a fiber's stack may be what overflowed. Where a handler cannot leave a
// fiber, a memory fault ends the process, as it would without the emulator.
class Catch {
    stack_t before_stack;

  public:
    Catch() {
        if (!fiber_can_divert()) return;
        alignas(16) static unsigned char stack[64 * 1024];
        stack_t own = {};
        own.ss_sp = stack;
        own.ss_size = sizeof stack;
        sigaltstack(&own, &before_stack);
        struct sigaction action = {};
        action.sa_sigaction = on_memory_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &before_segv);
        sigaction(SIGBUS, &action, &before_bus);
    }
    ~Catch() {
        if (!fiber_can_divert()) return;
        sigaction(SIGSEGV, &before_segv, nullptr);
        sigaction(SIGBUS, &before_bus, nullptr);
        sigaltstack(&before_stack, nullptr);
    }
};

std::map<std::string, Kernel>& kernels() {
    static auto& all = *new std::map<std::string, Kernel>;
    return all;
}

}  // namespace

Registration::Registration(const char* file, const char* name, size_t arguments, void (*run)(const void*), char* shared, char* shared_end) {
    auto* begin = reinterpret_cast<unsigned char*>(shared);
    auto* end = reinterpret_cast<unsigned char*>(shared_end);
    if (!kernels().emplace(name, Kernel{file, name, arguments, run, begin, end}).second) {
        std::fprintf(stderr, "emulated driver: two kernels have the name %s\n", name);
        std::abort();
    }
}

std::vector<std::string> kernel_names() {
    std::vector<std::string> names;
    for (const auto& [name, kernel] : kernels()) names.push_back(name);
    return names;
}

const Kernel* find_kernel(const std::string& name) {
    auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : &found->second;
}

void barrier() {
    Thread& me = self();
    Warp& warp = *me.warp;
    running.at_barrier++;
    if (running.at_barrier == running.threads) {
        running.at_barrier = 0;
        running.ready_warps = running.warps == 32 ? FULL : (1u << running.warps) - 1;
        for (unsigned w = 0; w < running.warps; w++) {
            warps[w].ready = warps[w].exists;
            warps[w].barred = 0;
        }
        return;
    }
    warp.ready &= ~me.bit;
    warp.barred |= me.bit;
    yield(me);
}

bool is_shared(const void* at, std::size_t bytes) {
    auto within = [&](const unsigned char* from, std::size_t size) {
        auto* byte = static_cast<const unsigned char*>(at);
        return byte >= from && byte + bytes <= from + size;
    };
    const Kernel& kernel = *running.kernel;
    return within(dynamic_shared, running.dynamic_bytes) ||
           (kernel.shared != nullptr && within(kernel.shared, std::size_t(kernel.shared_end - kernel.shared)));
}

bool copies_at_once() { return running.reverse; }

void meet(unsigned mask, Meeting what) { assemble(self(), mask, what); }

unsigned exchange(unsigned mask, Meeting what, unsigned bits, unsigned source) {
    Thread& me = self();
    unsigned(&words)[32] = me.warp->words[me.warp->phase & 1];
    words[me.lane] = bits;
    assemble(me, mask, what);
    return words[source];
}

unsigned ballot(unsigned mask, bool vote) {
    Thread& me = self();
    unsigned(&words)[32] = me.warp->words[me.warp->phase & 1];
    words[me.lane] = vote;
    assemble(me, mask, BALLOT);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; lane++) votes |= words[lane] << lane;
    return votes;
}

void fault(int code, const char* format, ...) {
    char text[512];
    va_list values;
    va_start(values, format);
    std::vsnprintf(text, sizeof text, format, values);
    va_end(values);
    char where[256];
    std::snprintf(where, sizeof where, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", running.kernel->name.c_str(), block_index.x,
                  block_index.y, block_index.z, current->index.x, current->index.y, current->index.z);
    running.fault = {code, std::string(where) + text};
    leave();
}

Fault run_grid(const Kernel& kernel, const void* arguments, dim3 grid, dim3 block, std::size_t dynamic_bytes, bool early, bool reverse) {
    running.kernel = &kernel;
    running.arguments = arguments;
    running.threads = block.x * block.y * block.z;
    running.dynamic_bytes = dynamic_bytes;
    running.early = early;
    running.reverse = reverse;
    running.fault = {};
    running.runner = pthread_self();
    grid_size = grid;
    block_size = block;
    dynamic_shared = shared_memory(dynamic_bytes);
    lay_out(reverse);
    Catch faults;
    running.active = true;
    unsigned long long blocks = 1ull * grid.x * grid.y * grid.z;
    for (unsigned long long i = 0; i < blocks && running.fault.code == 0; i++) {
        unsigned long long at = reverse ? blocks - 1 - i : i;
        block_index = {unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)};
        if (kernel.shared != nullptr) std::memset(kernel.shared, 0xff, std::size_t(kernel.shared_end - kernel.shared));
        std::memset(dynamic_shared, 0xff, (dynamic_bytes + 15) / 16 * 16);
        forget_copies();
        begin_block();
        current = &threads[0];
        fiber_switch(running.host, threads[0].fiber);
    }
    running.active = false;
    current = nullptr;
    // Fibers of a kernel that ended early rest anywhere.
    if (running.fault.code != 0) begun = 0;
    return running.fault;
}

}  // namespace emu

void emu_after_the_kernel_before() { emu::self().waited = true; }

void emu_mma_bf16(float* c, const unsigned* a, const unsigned* b) {
    using namespace emu;
    Thread& me = self();
    Warp& warp = *me.warp;
    unsigned phase = warp.phase & 1, lane = me.lane, g = lane / 4, t = lane % 4;
    std::memcpy(warp.a[phase][lane], a, sizeof warp.a[phase][lane]);
    std::memcpy(warp.b[phase][lane], b, sizeof warp.b[phase][lane]);
    assemble(me, FULL, MMA);
    const float(&product)[16][8] = warp.product[phase];
    c[0] += product[g][2 * t];
    c[1] += product[g][2 * t + 1];
    c[2] += product[g + 8][2 * t];
    c[3] += product[g + 8][2 * t + 1];
}

// Where the kernels are compiled with -fsanitize=bounds,alignment,null, the checks call these, and no library of the sanitizer is linked.
// The layouts are those of the calls that GCC and Clang make.
namespace {

struct Source {
    const char* file;
    unsigned line, column;
};

struct TypeName {
    unsigned short kind, information;
    char name[1];
};

struct OutOfBounds {
    Source source;
    const TypeName *array, *index;
};

struct Mismatch {
    Source source;
    const TypeName* type;
    unsigned char log_alignment, kind;
};

}  // namespace

extern "C" __attribute__((noreturn)) void __ubsan_handle_out_of_bounds(OutOfBounds* at, void* index) {
    emu::fault(emu::ILLEGAL_ADDRESS, "%s:%u: index %lld of an array of type %s", at->source.file, at->source.line,
               static_cast<long long>(reinterpret_cast<std::intptr_t>(index)), at->array->name);
}

extern "C" __attribute__((noreturn)) void __ubsan_handle_type_mismatch_v1(Mismatch* at, void* pointer) {
    if (pointer == nullptr) emu::fault(emu::ILLEGAL_ADDRESS, "%s:%u: a null pointer to %s", at->source.file, at->source.line, at->type->name);
    emu::fault(emu::MISALIGNED_ADDRESS, "%s:%u: address %p of %s is no multiple of %u", at->source.file, at->source.line, pointer,
               at->type->name, 1u << at->log_alignment);
}
