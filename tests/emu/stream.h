// Streams: work is queued, and runs when somebody waits for it. Graphs: work that was recorded instead.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include <pthread.h>

#include "block.h"
#include "memory.h"

namespace emu {

struct Graph;
struct Stream;

struct Operation {
    enum What { Launch, ToDevice, ToHost, Copy, Fill, Wait, Replay } what;
    explicit Operation(What what) : what(what) {}
    // Launch
    const Kernel* kernel = nullptr;
    dim3 grid, block;
    std::size_t shared = 0;
    bool early = false;  // may begin before the kernel in front of it has ended
    // The arguments of a launch; what pageable memory held when a copy was queued.
    std::vector<unsigned char> bytes;
    // Copies and fills
    Address to = 0, from = 0;
    std::size_t count = 0;
    unsigned char value = 0;
    bool pageable = false;  // the host's side is not page-locked
    // Wait: until that stream has done its work up to this ticket.
    std::shared_ptr<Stream> awaited;
    std::uint64_t ticket = 0;
    // Replay
    std::shared_ptr<const Graph> graph;
};

struct Graph {
    std::vector<Operation> operations;
};

struct Stream {
    std::deque<Operation> queue;
    std::uint64_t issued = 0, done = 0;  // operations so far
    // What is being recorded, if anything, how, and by which thread.
    std::shared_ptr<Graph> capture;
    bool invalidated = false;
    int mode = 0;
    pthread_t recorder;
};

// Queues or records the operation. With the knob `eager` it runs at once. Returns an error code of the driver.
int submit(Stream& stream, Operation operation);

// Runs a stream's work up to this ticket. Returns 0, or the error that the context is lost by.
int drain(Stream& stream, std::uint64_t until);
int drain(Stream& stream);
int drain_all();

}  // namespace emu
