// The driver's interface: streams, events, captures and graphs.
#include "state.h"

using namespace emu;

EMU_API CUresult cuStreamCreate(CUstream* stream, unsigned int flags) {
    EMU_ENTER("cuStreamCreate", Needs::Context);
    if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
    auto made = std::make_shared<Stream>();
    *stream = reinterpret_cast<CUstream>(made.get());
    state().streams[*stream] = made;
    return 0;
}

EMU_API CUresult cuStreamDestroy_v2(CUstream stream) {
    EMU_ENTER("cuStreamDestroy_v2", Needs::Context);
    auto queue = stream_of(stream);
    if (!queue) return CUDA_ERROR_INVALID_HANDLE;
    int code = drain(*queue);
    state().streams.erase(stream);
    return code;
}

EMU_API CUresult cuStreamSynchronize(CUstream stream) {
    EMU_ENTER("cuStreamSynchronize", Needs::Context);
    auto queue = stream_of(stream);
    if (!queue) return CUDA_ERROR_INVALID_HANDLE;
    if (queue->capture) {
        queue->invalidated = true;
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuStreamSynchronize of a stream that is being captured");
    }
    return drain(*queue);
}

EMU_API CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int) {
    EMU_ENTER("cuStreamWaitEvent", Needs::Context);
    auto queue = stream_of(stream);
    auto found = state().events.find(event);
    if (!queue || found == state().events.end()) return CUDA_ERROR_INVALID_HANDLE;
    if (queue->capture) {
        queue->invalidated = true;
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuStreamWaitEvent in a capture, which the emulator does not offer");
    }
    if (!found->second->stream) return 0;
    Operation work(Operation::Wait);
    work.awaited = found->second->stream;
    work.ticket = found->second->ticket;
    return submit(*queue, std::move(work));
}

EMU_API CUresult cuEventCreate(CUevent* event, unsigned int) {
    EMU_ENTER("cuEventCreate", Needs::Context);
    std::unique_ptr<CUevent_st> made(new CUevent_st);
    *event = made.get();
    state().events[*event] = std::move(made);
    return 0;
}

EMU_API CUresult cuEventDestroy_v2(CUevent event) {
    EMU_ENTER("cuEventDestroy_v2", Needs::Context);
    return state().events.erase(event) == 1 ? 0 : refuse(CUDA_ERROR_INVALID_HANDLE, "an event that does not exist");
}

EMU_API CUresult cuEventRecord(CUevent event, CUstream stream) {
    EMU_ENTER("cuEventRecord", Needs::Context);
    auto queue = stream_of(stream);
    auto found = state().events.find(event);
    if (!queue || found == state().events.end()) return CUDA_ERROR_INVALID_HANDLE;
    if (queue->capture) {
        queue->invalidated = true;
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuEventRecord in a capture, which the emulator does not offer");
    }
    found->second->stream = queue;
    found->second->ticket = queue->issued;
    return 0;
}

EMU_API CUresult cuEventSynchronize(CUevent event) {
    EMU_ENTER("cuEventSynchronize", Needs::Context);
    auto found = state().events.find(event);
    if (found == state().events.end()) return refuse(CUDA_ERROR_INVALID_HANDLE, "an event that does not exist");
    return found->second->stream ? drain(*found->second->stream, found->second->ticket) : 0;
}

EMU_API CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
    EMU_ENTER("cuStreamBeginCapture_v2", Needs::Context);
    auto queue = stream_of(stream);
    if (!queue) return CUDA_ERROR_INVALID_HANDLE;
    if (mode < 0 || mode > 2) return CUDA_ERROR_INVALID_VALUE;
    if (queue->capture) return refuse(CUDA_ERROR_ILLEGAL_STATE, "a capture was begun in a stream that is being captured");
    queue->capture = std::make_shared<Graph>();
    queue->invalidated = false;
    queue->mode = mode;
    queue->recorder = pthread_self();
    return 0;
}

EMU_API CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
    EMU_ENTER("cuThreadExchangeStreamCaptureMode", Needs::Initialised);
    if (*mode < 0 || *mode > 2) return CUDA_ERROR_INVALID_VALUE;
    std::swap(*mode, thread_mode());
    return 0;
}

EMU_API CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    EMU_ENTER("cuStreamEndCapture", Needs::Context);
    auto queue = stream_of(stream);
    if (!queue) return CUDA_ERROR_INVALID_HANDLE;
    *graph = nullptr;
    if (!queue->capture) return refuse(CUDA_ERROR_ILLEGAL_STATE, "the end of a capture that was not begun");
    constexpr int RELAXED = 2;
    if (queue->mode != RELAXED && !pthread_equal(queue->recorder, pthread_self())) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    std::unique_ptr<CUgraph_st> made(new CUgraph_st{std::move(queue->capture)});
    queue->capture.reset();
    if (queue->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    *graph = made.get();
    state().graphs[*graph] = std::move(made);
    return 0;
}

EMU_API CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long flags) {
    EMU_ENTER("cuGraphInstantiateWithFlags", Needs::Context);
    auto found = state().graphs.find(graph);
    if (found == state().graphs.end()) return refuse(CUDA_ERROR_INVALID_HANDLE, "a graph that does not exist");
    if (flags > 15) return CUDA_ERROR_INVALID_VALUE;
    std::unique_ptr<CUgraphExec_st> made(new CUgraphExec_st{std::make_shared<const Graph>(*found->second->graph)});
    *executable = made.get();
    state().executables[*executable] = std::move(made);
    return 0;
}

EMU_API CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    EMU_ENTER("cuGraphLaunch", Needs::Context);
    auto queue = stream_of(stream);
    auto found = state().executables.find(executable);
    if (!queue || found == state().executables.end()) return refuse(CUDA_ERROR_INVALID_HANDLE, "a graph or stream that does not exist");
    Operation work(Operation::Replay);
    work.graph = found->second->graph;
    return submit(*queue, std::move(work));
}

EMU_API CUresult cuGraphExecDestroy(CUgraphExec executable) {
    EMU_ENTER("cuGraphExecDestroy", Needs::Context);
    return state().executables.erase(executable) == 1 ? 0 : refuse(CUDA_ERROR_INVALID_HANDLE, "an executable graph that does not exist");
}

EMU_API CUresult cuGraphDestroy(CUgraph graph) {
    EMU_ENTER("cuGraphDestroy", Needs::Context);
    return state().graphs.erase(graph) == 1 ? 0 : refuse(CUDA_ERROR_INVALID_HANDLE, "a graph that does not exist");
}
