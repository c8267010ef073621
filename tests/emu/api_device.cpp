// The driver's interface: start, devices, contexts, errors.
#include <cstring>

#include <unistd.h>

#include "state.h"

using namespace emu;

EMU_API CUresult cuInit(unsigned int flags) {
    EMU_ENTER("cuInit", Needs::Nothing);
    if (flags != 0) return refuse(CUDA_ERROR_INVALID_VALUE, "cuInit with flags");
    if (state().knobs.devices == 0) return CUDA_ERROR_NO_DEVICE;
    state().owner = getpid();
    return 0;
}

EMU_API CUresult cuDriverGetVersion(int* version) {
    EMU_ENTER("cuDriverGetVersion", Needs::Nothing);
    *version = state().knobs.driver;
    return 0;
}

EMU_API CUresult cuDeviceGetCount(int* count) {
    EMU_ENTER("cuDeviceGetCount", Needs::Initialised);
    *count = state().knobs.devices;
    return 0;
}

EMU_API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    EMU_ENTER("cuDeviceGet", Needs::Initialised);
    if (ordinal < 0 || ordinal >= state().knobs.devices) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return 0;
}

static bool exists(CUdevice device) { return device >= 0 && device < state().knobs.devices; }

EMU_API CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    EMU_ENTER("cuDeviceGetName", Needs::Initialised);
    if (!exists(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (length <= 0) return CUDA_ERROR_INVALID_VALUE;
    std::strncpy(name, "Emulated GPU", std::size_t(length));
    name[length - 1] = 0;
    return 0;
}

// Shared memory that a block may be allowed, by capability.
int most_shared(int major, int minor) {
    if (major >= 12) return 101376;
    if (major >= 9) return 232448;
    if (major == 8) return minor == 0 || minor == 7 ? 166912 : 101376;
    return 65536;
}

EMU_API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    EMU_ENTER("cuDeviceGetAttribute", Needs::Initialised);
    if (!exists(device)) return CUDA_ERROR_INVALID_DEVICE;
    const Knobs& knobs = state().knobs;
    switch (attribute) {
        case 1: *value = 1024; return 0;               // threads of a block
        case 2: case 3: *value = 1024; return 0;       // x and y of a block
        case 4: *value = 64; return 0;                 // z of a block
        case 5: *value = 2147483647; return 0;         // x of a grid
        case 6: case 7: *value = 65535; return 0;      // y and z of a grid
        case 8: *value = 48 * 1024; return 0;          // shared memory of a block
        case 10: *value = 32; return 0;                // threads of a warp
        case 12: *value = 65536; return 0;             // registers of a block
        case 13: *value = 1980000; return 0;           // clock, kHz
        case 16: *value = knobs.multiprocessors; return 0;
        case 18: *value = 0; return 0;                 // whether it drives a display
        case 19: case 41: *value = 1; return 0;        // can map host memory; unified addresses
        case 36: *value = 3201000; return 0;           // clock of memory, kHz
        case 37: *value = 6144; return 0;              // width of its bus, bits
        case 38: *value = 52428800; return 0;          // L2 cache
        case 39: *value = 2048; return 0;              // threads of a multiprocessor
        case 75: *value = knobs.major; return 0;
        case 76: *value = knobs.minor; return 0;
        case 81: *value = 233472; return 0;            // shared memory of a multiprocessor
        case 97: *value = most_shared(knobs.major, knobs.minor); return 0;
        default: return refuse(CUDA_ERROR_INVALID_VALUE, "cuDeviceGetAttribute of " + std::to_string(attribute) + ", which the emulator lacks");
    }
}

EMU_API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    EMU_ENTER("cuDevicePrimaryCtxRetain", Needs::Initialised);
    if (!exists(device)) return CUDA_ERROR_INVALID_DEVICE;
    auto& held = state().contexts[device];
    if (!held) held.reset(new CUctx_st{device});
    held->retained++;
    *context = held.get();
    return 0;
}

EMU_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    EMU_ENTER("cuDevicePrimaryCtxRelease_v2", Needs::Initialised);
    auto found = state().contexts.find(device);
    if (found == state().contexts.end() || found->second->retained == 0)
        return refuse(CUDA_ERROR_INVALID_CONTEXT, "a primary context that nobody holds was released");
    found->second->retained--;
    return 0;
}

EMU_API CUresult cuCtxSetCurrent(CUcontext context) {
    EMU_ENTER("cuCtxSetCurrent", Needs::Initialised);
    bool known = context == nullptr;
    for (auto& [device, held] : state().contexts) known = known || (held.get() == context && held->retained > 0);
    if (!known) return refuse(CUDA_ERROR_INVALID_CONTEXT, "a context that nobody holds was made current");
    current_context() = context;
    return 0;
}

EMU_API CUresult cuCtxGetCurrent(CUcontext* context) {
    EMU_ENTER("cuCtxGetCurrent", Needs::Initialised);
    *context = current_context();
    return 0;
}

EMU_API CUresult cuCtxSynchronize() {
    EMU_ENTER("cuCtxSynchronize", Needs::Context);
    if (capture_forbids("cuCtxSynchronize")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return drain_all();
}

namespace {

struct Error {
    int code;
    const char *name, *text;
};

const Error ERRORS[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {401, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {710, "CUDA_ERROR_ASSERT", "device-side assert triggered"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const Error* find(int code) {
    for (const Error& error : ERRORS)
        if (error.code == code) return &error;
    return nullptr;
}

}  // namespace

EMU_API CUresult cuGetErrorName(CUresult error, const char** text) {
    const Error* found = find(error);
    *text = found == nullptr ? nullptr : found->name;
    return found == nullptr ? CUDA_ERROR_INVALID_VALUE : 0;
}

EMU_API CUresult cuGetErrorString(CUresult error, const char** text) {
    const Error* found = find(error);
    *text = found == nullptr ? nullptr : found->text;
    return found == nullptr ? CUDA_ERROR_INVALID_VALUE : 0;
}
