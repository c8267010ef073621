// The interface of NVRTC, the compiler at run time: an image names the kernels that a source mentions, and says for which architecture.
// A line that begins with #error is an error of compilation, as it is for a compiler.
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "image.h"
#include "state.h"

// Every function that can fail begins with this.
#define NVRTC_ENTER(function) \
    if (int code = emu::count_call(function)) return code; \
    std::lock_guard<std::mutex> guard(lock)

typedef int nvrtcResult;
typedef struct _nvrtcProgram* nvrtcProgram;

enum { NVRTC_SUCCESS = 0, NVRTC_ERROR_INVALID_INPUT = 3, NVRTC_ERROR_INVALID_PROGRAM = 4, NVRTC_ERROR_INVALID_OPTION = 5, NVRTC_ERROR_COMPILATION = 6 };

struct _nvrtcProgram {
    std::string source, name, image, log;
};

namespace {

std::mutex lock;

std::map<nvrtcProgram, std::unique_ptr<_nvrtcProgram>>& programs() {
    static auto& all = *new std::map<nvrtcProgram, std::unique_ptr<_nvrtcProgram>>;
    return all;
}

_nvrtcProgram* find(nvrtcProgram program) {
    auto found = programs().find(program);
    return found == programs().end() ? nullptr : found->second.get();
}

// The architecture of an option such as --gpu-architecture=sm_90, as 90; 0 for another option.
int architecture(const std::string& option) {
    int sm = 0;
    auto equals = option.find("=sm_");
    if (option.find("arch") != std::string::npos && equals != std::string::npos) std::sscanf(option.c_str() + equals, "=sm_%d", &sm);
    return sm;
}

}  // namespace

EMU_API nvrtcResult nvrtcVersion(int* major, int* minor) {
    NVRTC_ENTER("nvrtcVersion");
    *major = 12;
    *minor = 9;
    return NVRTC_SUCCESS;
}

EMU_API const char* nvrtcGetErrorString(nvrtcResult result) {
    switch (result) {
        case NVRTC_SUCCESS: return "NVRTC_SUCCESS";
        case NVRTC_ERROR_INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
        case NVRTC_ERROR_INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
        case NVRTC_ERROR_INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
        case NVRTC_ERROR_COMPILATION: return "NVRTC_ERROR_COMPILATION";
        default: return "NVRTC_ERROR unknown";
    }
}

EMU_API nvrtcResult nvrtcGetNumSupportedArchs(int* count) {
    *count = 4;
    return NVRTC_SUCCESS;
}

EMU_API nvrtcResult nvrtcGetSupportedArchs(int* architectures) {
    const int all[] = {80, 90, 100, 120};
    std::memcpy(architectures, all, sizeof all);
    return NVRTC_SUCCESS;
}

EMU_API nvrtcResult nvrtcCreateProgram(nvrtcProgram* program, const char* source, const char* name, int headers, const char* const*,
                                       const char* const*) {
    NVRTC_ENTER("nvrtcCreateProgram");
    if (program == nullptr || source == nullptr || headers != 0) return NVRTC_ERROR_INVALID_INPUT;
    std::unique_ptr<_nvrtcProgram> made(new _nvrtcProgram{source, name == nullptr ? "default_program" : name, "", ""});
    *program = made.get();
    programs()[*program] = std::move(made);
    return NVRTC_SUCCESS;
}

EMU_API nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int count, const char* const* options) {
    // A compilation that a knob lets fail has a log, too.
    int demanded = emu::count_call("nvrtcCompileProgram");
    std::lock_guard<std::mutex> guard(lock);
    _nvrtcProgram* p = find(program);
    if (p == nullptr) return NVRTC_ERROR_INVALID_PROGRAM;
    if (demanded != 0) {
        p->log = p->name + "(1): error: FASTDECODE_EMU lets this compilation fail\n1 error detected\n";
        return demanded;
    }
    int sm = 0;
    for (int i = 0; i < count; i++)
        if (int asked = architecture(options[i])) sm = asked;
    if (sm < 50) {
        p->log = "no architecture among the options";
        return NVRTC_ERROR_INVALID_OPTION;
    }
    auto error = p->source.rfind("#error", 0) == 0 ? 0 : p->source.find("\n#error");
    if (error != std::string::npos) {
        auto begin = p->source[error] == '\n' ? error + 1 : error;
        p->log = p->name + ": " + p->source.substr(begin, p->source.find('\n', begin) - begin) + "\n1 error detected\n";
        return NVRTC_ERROR_COMPILATION;
    }
    p->image = emu::write_image(p->source, sm);
    return NVRTC_SUCCESS;
}

EMU_API nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, std::size_t* bytes) {
    NVRTC_ENTER("nvrtcGetCUBINSize");
    _nvrtcProgram* p = find(program);
    if (p == nullptr) return NVRTC_ERROR_INVALID_PROGRAM;
    *bytes = p->image.size();
    return NVRTC_SUCCESS;
}

EMU_API nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char* image) {
    NVRTC_ENTER("nvrtcGetCUBIN");
    _nvrtcProgram* p = find(program);
    if (p == nullptr) return NVRTC_ERROR_INVALID_PROGRAM;
    std::memcpy(image, p->image.data(), p->image.size());
    return NVRTC_SUCCESS;
}

EMU_API nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, std::size_t* bytes) {
    NVRTC_ENTER("nvrtcGetProgramLogSize");
    _nvrtcProgram* p = find(program);
    if (p == nullptr) return NVRTC_ERROR_INVALID_PROGRAM;
    *bytes = p->log.size() + 1;
    return NVRTC_SUCCESS;
}

EMU_API nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char* log) {
    NVRTC_ENTER("nvrtcGetProgramLog");
    _nvrtcProgram* p = find(program);
    if (p == nullptr) return NVRTC_ERROR_INVALID_PROGRAM;
    std::memcpy(log, p->log.c_str(), p->log.size() + 1);
    return NVRTC_SUCCESS;
}

EMU_API nvrtcResult nvrtcDestroyProgram(nvrtcProgram* program) {
    NVRTC_ENTER("nvrtcDestroyProgram");
    if (program == nullptr || programs().erase(*program) == 0) return NVRTC_ERROR_INVALID_PROGRAM;
    *program = nullptr;
    return NVRTC_SUCCESS;
}
