// Running queued work. Between queueing and waiting nothing happens, so that a program that does not wait reads what was there before.
#include "stream.h"

#include <cstring>

#include "cuda.h"
#include "state.h"

namespace emu {
namespace {

// A queue that is longer is run: a GPU does not wait for ever either.
constexpr std::size_t MOST_QUEUED = 65536;

template <typename T> T* pointer(Address at) { return reinterpret_cast<T*>(static_cast<std::uintptr_t>(at)); }

// The context is lost: what is queued anywhere is forgotten.
int lose(int code, const std::string& message) {
    complain(message);
    state().lost = code;
    for (auto& [handle, stream] : state().streams) {
        stream->queue.clear();
        stream->done = stream->issued;
    }
    return code;
}

int launch(const Operation& work) {
    auto& counters = state().counters;
    counters.launches[work.kernel->name]++;
    counters.early += work.early;
    Fault fault = run_grid(*work.kernel, work.bytes.data(), work.grid, work.block, work.shared, work.early, state().knobs.reverse);
    if (fault.code != 0) return lose(fault.code, fault.message);
    std::string damaged = damage(true);
    if (!damaged.empty()) return lose(CUDA_ERROR_ILLEGAL_ADDRESS, "kernel " + work.kernel->name + ": " + damaged);
    return 0;
}

int copy(const Operation& work, Kind to, Kind from, std::size_t& counter) {
    // Pageable memory is the host's own: what a copy reads of it was kept, and a copy to it runs at once.
    bool have_to = (work.pageable && to == Kind::Pinned) || holds(to, work.to, work.count);
    bool have_from = !work.bytes.empty() || holds(from, work.from, work.count);
    if (!have_to || !have_from)
        return lose(CUDA_ERROR_ILLEGAL_ADDRESS, std::string("a copy ") + (have_to ? "from" : "to") + " memory that was freed before it ran: " +
                                                    describe_address(pointer<void>(have_to ? work.from : work.to)));
    std::memmove(pointer<void>(work.to), work.bytes.empty() ? pointer<void>(work.from) : work.bytes.data(), work.count);
    counter += work.count;
    return 0;
}

int run(const Operation& work) {
    auto& counters = state().counters;
    switch (work.what) {
        case Operation::Launch: return launch(work);
        case Operation::ToDevice: return copy(work, Kind::Device, Kind::Pinned, counters.to_device);
        case Operation::ToHost: return copy(work, Kind::Pinned, Kind::Device, counters.to_host);
        case Operation::Copy: return copy(work, Kind::Device, Kind::Device, counters.copied);
        case Operation::Fill:
            if (!holds(Kind::Device, work.to, work.count)) return lose(CUDA_ERROR_ILLEGAL_ADDRESS, "memory was freed before it was set");
            std::memset(pointer<void>(work.to), work.value, work.count);
            counters.filled += work.count;
            return 0;
        case Operation::Wait: return drain(*work.awaited, work.ticket);
        case Operation::Replay:
            counters.graph_launches++;
            for (const Operation& recorded : work.graph->operations)
                if (int code = run(recorded)) return code;
            return 0;
    }
    return 0;
}

}  // namespace

int submit(Stream& stream, Operation operation) {
    if (stream.capture) {
        if (stream.invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        stream.capture->operations.push_back(std::move(operation));
        return 0;
    }
    stream.queue.push_back(std::move(operation));
    stream.issued++;
    return state().knobs.eager || stream.queue.size() > MOST_QUEUED ? drain(stream) : 0;
}

int drain(Stream& stream, std::uint64_t until) {
    if (stream.done >= until) return state().lost;
    Opened opened;
    while (stream.done < until && !stream.queue.empty()) {
        Operation work = std::move(stream.queue.front());
        stream.queue.pop_front();
        stream.done++;
        if (int code = run(work)) return code;
    }
    return state().lost;
}

int drain(Stream& stream) { return drain(stream, stream.issued); }

int drain_all() {
    for (auto& [handle, stream] : state().streams)
        if (int code = drain(*stream)) return code;
    return state().lost;
}

}  // namespace emu
