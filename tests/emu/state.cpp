// The state of the emulated driver, its errors on demand, and its report.
#include "state.h"

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <unistd.h>

namespace emu {

// Never destroyed: what drops at the end of a process still calls in.
State& state() {
    static auto& it = *new State;
    return it;
}

void complain(const std::string& sentence) {
    state().message = sentence;
    std::fprintf(stderr, "emulated driver: %s\n", sentence.c_str());
}

CUcontext& current_context() {
    static thread_local CUcontext context = nullptr;
    return context;
}

namespace {

// This library, as the loader knows it.
void* own_library() {
    Dl_info about;
    if (dladdr(reinterpret_cast<void*>(&complain), &about) == 0) return nullptr;
    return dlopen(about.dli_fname, RTLD_NOW | RTLD_NOLOAD);
}

// Errors after which a real context answers every call with the same error.
bool loses_the_context(int code) {
    return code == 214 || code == 220 || code == 700 || code == 702 || code == 709 || code == 710 || (code >= 713 && code <= 719);
}

// The exported function of a name that may leave its version out; empty if there is none.
std::string exported(const std::string& name) {
    for (const std::string& whole : {name, name + "_v2"})
        if (dlsym(own_library(), whole.c_str()) != nullptr) return whole;
    return "";
}

// The error that a knob demands of this call, or 0.
int demanded(const std::string& function, std::size_t call) {
    for (const Failure& failure : state().knobs.failures) {
        if (failure.function != function || failure.count != call) continue;
        if (loses_the_context(failure.code)) state().lost = failure.code;
        return failure.code;
    }
    return 0;
}

}  // namespace

Entry::Entry(const char* function, Needs needs) : code(0) {
    State& s = state();
    // A forked child may find the lock taken for ever, so it asks first.
    if (s.owner != 0 && s.owner != getpid()) {
        code = CUDA_ERROR_NOT_INITIALIZED;
        return;
    }
    guard = std::unique_lock<std::recursive_mutex>(s.lock);
    code = demanded(function, ++s.counters.calls[function]);
    if (code != 0 || needs == Needs::Nothing) return;
    if (s.owner == 0) code = CUDA_ERROR_NOT_INITIALIZED;
    else if (s.lost != 0) code = s.lost;
    else if (needs == Needs::Context && current_context() == nullptr)
        code = refuse(CUDA_ERROR_INVALID_CONTEXT, std::string(function) + " on a thread that has no current context");
}

int count_call(const char* function) {
    State& s = state();
    std::lock_guard<std::recursive_mutex> guard(s.lock);
    return demanded(function, ++s.counters.calls[function]);
}

int& thread_mode() {
    thread_local int mode = 0;
    return mode;
}

bool capture_forbids(const char* function) {
    enum { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };
    bool forbidden = false;
    if (thread_mode() == RELAXED) return false;
    for (auto& [handle, stream] : state().streams) {
        if (!stream->capture) continue;
        bool own = pthread_equal(stream->recorder, pthread_self()) != 0;
        bool others = stream->mode == GLOBAL && thread_mode() == GLOBAL;
        if (others || (stream->mode != RELAXED && own)) {
            stream->invalidated = true;
            forbidden = true;
        }
    }
    if (forbidden) complain(std::string(function) + " while a stream is being captured");
    return forbidden;
}

int refuse(int code, const std::string& sentence) {
    complain(sentence);
    return code;
}

std::shared_ptr<Stream> stream_of(CUstream handle) {
    auto found = state().streams.find(handle);
    if (found != state().streams.end()) return found->second;
    complain(handle == nullptr ? "the default stream, which the emulator does not offer" : "a stream that does not exist");
    return nullptr;
}

namespace {

std::string counts(const std::map<std::string, std::size_t>& of) {
    std::string text;
    for (const auto& [name, count] : of) text += (text.empty() ? "\"" : ", \"") + name + "\": " + std::to_string(count);
    return "{" + text + "}";
}

}  // namespace
}  // namespace emu

// What happened since the last emu_configure, as a JSON object. The text lives until the next call.
EMU_API const char* emu_report() {
    using namespace emu;
    State& s = state();
    std::lock_guard<std::recursive_mutex> guard(s.lock);
    const Counters& c = s.counters;
    static auto& text = *new std::string;
    text = "{\"calls\": " + counts(c.calls) + ", \"launches\": " + counts(c.launches);
    std::pair<const char*, std::size_t> numbers[] = {
        {"bytes_to_device", c.to_device}, {"bytes_to_host", c.to_host}, {"bytes_copied", c.copied}, {"bytes_filled", c.filled},
        {"graph_launches", c.graph_launches}, {"early", c.early}, {"peak_memory", peak()}, {"memory", in_use(0)}, {"allocations", living(Kind::Device)},
        {"pinned", living(Kind::Pinned)}, {"streams", s.streams.size()}, {"events", s.events.size()}, {"graphs", s.graphs.size()},
        {"executables", s.executables.size()}, {"modules", s.modules.size()}, {"lost", std::size_t(s.lost)}};
    for (const auto& [name, number] : numbers) text += std::string(", \"") + name + "\": " + std::to_string(number);
    text += "}";
    return text.c_str();
}

// The emulator's last complaint, or an empty text. It lives until the next complaint.
EMU_API const char* emu_message() { return emu::state().message.c_str(); }

// Takes knobs as FASTDECODE_EMU has them, and begins anew: every allocation and handle is gone, and cuInit has to be called again. Returns
// 0, or 1 where the knobs mean nothing.
EMU_API int emu_configure(const char* text) {
    using namespace emu;
    State& s = state();
    std::lock_guard<std::recursive_mutex> guard(s.lock);
    Knobs knobs;
    std::string mistake = read_knobs(text, knobs);
    for (Failure& failure : knobs.failures) {
        std::string whole = exported(failure.function);
        if (whole.empty()) mistake = "FASTDECODE_EMU lets " + failure.function + " fail, which means nothing: there is no such function";
        failure.function = whole;
    }
    if (!mistake.empty()) return refuse(1, mistake);
    s.knobs = knobs;
    s.owner = 0;
    s.lost = 0;
    s.message.clear();
    s.counters = {};
    s.streams.clear();
    s.events.clear();
    s.graphs.clear();
    s.executables.clear();
    s.functions.clear();
    s.modules.clear();
    for (auto& [device, context] : s.contexts) context->retained = 0;
    release_all();
    set_limit(knobs.memory);
    reset_peak();
    return 0;
}

namespace {

// The environment is read when the library is loaded.
struct Begin {
    Begin() {
        const char* text = std::getenv("FASTDECODE_EMU");
        if (emu_configure(text == nullptr ? "" : text) != 0) std::abort();
    }
} begin;

}  // namespace
