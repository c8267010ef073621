// The driver's state, and what every function of the interface does first.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include <sys/types.h>

#include "cuda.h"
#include "knobs.h"
#include "stream.h"

// A device's primary context.
struct CUctx_st {
    int device;
    int retained = 0;
};

// A kernel of a module; more than 48 KiB of dynamic shared memory must be allowed first.
struct CUfunc_st {
    const emu::Kernel* kernel;
    std::size_t allowed = 48 * 1024;
};

// A module: which kernels it has, and the functions that were asked for.
struct CUmod_st {
    std::vector<std::string> kernels;
    std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};

// What a stream had been given when the event was recorded; nothing before.
struct CUevent_st {
    std::shared_ptr<emu::Stream> stream;
    std::uint64_t ticket = 0;
};

struct CUgraph_st {
    std::shared_ptr<emu::Graph> graph;
};

struct CUgraphExec_st {
    std::shared_ptr<const emu::Graph> graph;
};

namespace emu {

struct Counters {
    std::map<std::string, std::size_t> calls, launches;
    std::size_t to_device = 0, to_host = 0, copied = 0, filled = 0, graph_launches = 0, early = 0;
};

struct State {
    std::recursive_mutex lock;
    Knobs knobs;
    pid_t owner = 0;  // the process that called cuInit; 0 before
    int lost = 0;     // the error after which nothing works any more
    std::string message;
    Counters counters;
    std::map<int, std::unique_ptr<CUctx_st>> contexts;
    std::map<CUstream, std::shared_ptr<Stream>> streams;
    std::map<CUevent, std::unique_ptr<CUevent_st>> events;
    std::map<CUgraph, std::unique_ptr<CUgraph_st>> graphs;
    std::map<CUgraphExec, std::unique_ptr<CUgraphExec_st>> executables;
    std::map<CUmodule, std::unique_ptr<CUmod_st>> modules;
    std::map<CUfunction, CUfunc_st*> functions;
};

State& state();

// Says a sentence on stderr, and keeps it for `emu_message`.
void complain(const std::string& sentence);

// The context that this thread has made current, or null.
CUcontext& current_context();

// What a function needs before it can do anything.
enum class Needs { Nothing, Initialised, Context };

// The beginning of every function: counts the call, takes the lock, fails where a knob says so, in a forked child, before cuInit, after the
// context was lost, and without a context.
class Entry {
    std::unique_lock<std::recursive_mutex> guard;

  public:
    int code;
    Entry(const char* function, Needs needs);
};

// Counts a call of a function that needs no context, and returns the error that a knob demands of it, or 0.
int count_call(const char* function);

// Which captures forbid calls of this thread, as cuThreadExchangeStreamCaptureMode sets it: global, its own, relaxed.
int& thread_mode();

// Whether a capture forbids what would wait or allocate; the capture is invalid from then on.
bool capture_forbids(const char* function);

// A sentence, and the code it explains.
int refuse(int code, const std::string& sentence);

// The stream of a handle, or null with a complaint.
std::shared_ptr<Stream> stream_of(CUstream handle);

}  // namespace emu

// Every function of the interface begins with this.
#define EMU_ENTER(function, needs) \
    emu::Entry entry(function, needs); \
    if (entry.code != 0) return entry.code

#define EMU_API extern "C" __attribute__((visibility("default")))
