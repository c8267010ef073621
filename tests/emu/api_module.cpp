// The driver's interface: modules, functions and launches.
#include <algorithm>

#include "image.h"
#include "state.h"

using namespace emu;

int most_shared(int major, int minor);

EMU_API CUresult cuModuleLoadData(CUmodule* module, const void* bytes) {
    EMU_ENTER("cuModuleLoadData", Needs::Context);
    if (capture_forbids("cuModuleLoadData")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    Image image;
    if (!read_image(bytes, image)) return refuse(CUDA_ERROR_INVALID_IMAGE, "an image that is no cubin");
    const Knobs& knobs = state().knobs;
    if (image.major != knobs.major || image.minor > knobs.minor) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    std::unique_ptr<CUmod_st> made(new CUmod_st{image.kernels, {}});
    *module = made.get();
    state().modules[*module] = std::move(made);
    return 0;
}

EMU_API CUresult cuModuleUnload(CUmodule module) {
    EMU_ENTER("cuModuleUnload", Needs::Context);
    auto found = state().modules.find(module);
    if (found == state().modules.end()) return refuse(CUDA_ERROR_INVALID_HANDLE, "a module that does not exist");
    if (capture_forbids("cuModuleUnload")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    int code = drain_all();
    for (auto& [name, function] : found->second->functions) state().functions.erase(function.get());
    state().modules.erase(found);
    return code;
}

EMU_API CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    EMU_ENTER("cuModuleGetFunction", Needs::Context);
    auto found = state().modules.find(module);
    if (found == state().modules.end()) return refuse(CUDA_ERROR_INVALID_HANDLE, "a module that does not exist");
    CUmod_st& of = *found->second;
    const Kernel* kernel = find_kernel(name);
    if (kernel == nullptr || std::find(of.kernels.begin(), of.kernels.end(), name) == of.kernels.end()) return CUDA_ERROR_NOT_FOUND;
    auto& made = of.functions[name];
    if (!made) made.reset(new CUfunc_st{kernel});
    *function = made.get();
    state().functions[*function] = made.get();
    return 0;
}

EMU_API CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    EMU_ENTER("cuFuncSetAttribute", Needs::Context);
    auto found = state().functions.find(function);
    if (found == state().functions.end()) return refuse(CUDA_ERROR_INVALID_HANDLE, "a function that does not exist");
    constexpr CUfunction_attribute MOST_DYNAMIC_SHARED = 8, CARVEOUT = 9;
    if (attribute == CARVEOUT) return 0;
    if (attribute != MOST_DYNAMIC_SHARED) return refuse(CUDA_ERROR_INVALID_VALUE, "an attribute of functions that the emulator lacks");
    if (value < 0 || value > most_shared(state().knobs.major, state().knobs.minor)) return CUDA_ERROR_INVALID_VALUE;
    found->second->allowed = std::size_t(value);
    return 0;
}

static int launch(const CUlaunchConfig& c, CUfunction function, void** parameters, void** extra) {
    auto queue = stream_of(c.hStream);
    if (!queue) return CUDA_ERROR_INVALID_HANDLE;
    auto found = state().functions.find(function);
    if (found == state().functions.end()) return refuse(CUDA_ERROR_INVALID_HANDLE, "a function that does not exist was launched");
    const Kernel& kernel = *found->second->kernel;
    auto wrong = [&](const std::string& what) { return refuse(CUDA_ERROR_INVALID_VALUE, "a launch of " + kernel.name + " with " + what); };
    if (extra != nullptr) return wrong("`extra`, which the emulator does not offer");
    if (parameters == nullptr || parameters[0] == nullptr) return wrong("no arguments");
    if (c.gridDimX == 0 || c.gridDimY == 0 || c.gridDimZ == 0 || c.gridDimX > 2147483647u || c.gridDimY > 65535 || c.gridDimZ > 65535)
        return wrong("a grid of " + std::to_string(c.gridDimX) + " x " + std::to_string(c.gridDimY) + " x " + std::to_string(c.gridDimZ));
    if (c.blockDimX == 0 || c.blockDimY == 0 || c.blockDimZ == 0 || c.blockDimZ > 64 || c.blockDimX > MOST_THREADS ||
        c.blockDimY > MOST_THREADS || c.blockDimX * c.blockDimY * c.blockDimZ > MOST_THREADS)
        return wrong("a block of " + std::to_string(c.blockDimX) + " x " + std::to_string(c.blockDimY) + " x " + std::to_string(c.blockDimZ));
    if (c.sharedMemBytes > found->second->allowed)
        return wrong(std::to_string(c.sharedMemBytes) + " bytes of shared memory; allowed are " + std::to_string(found->second->allowed));
    constexpr int SERIALIZATION = 6;
    for (unsigned i = 0; i < c.numAttrs; i++)
        if (c.attrs[i].id != SERIALIZATION) return wrong("attribute " + std::to_string(c.attrs[i].id) + ", which the emulator does not offer");
    if (c.numAttrs != 0 && state().knobs.major < 9) return wrong("programmatic serialization, which needs compute capability 9.0");
    Operation work(Operation::Launch);
    work.kernel = &kernel;
    work.grid = dim3(c.gridDimX, c.gridDimY, c.gridDimZ);
    work.block = dim3(c.blockDimX, c.blockDimY, c.blockDimZ);
    work.shared = c.sharedMemBytes;
    for (unsigned i = 0; i < c.numAttrs; i++) work.early = work.early || c.attrs[i].value[0] != 0;
    auto* arguments = static_cast<const unsigned char*>(parameters[0]);
    work.bytes.assign(arguments, arguments + kernel.arguments);
    return submit(*queue, std::move(work));
}

EMU_API CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z, unsigned int block_x,
                                unsigned int block_y, unsigned int block_z, unsigned int shared, CUstream stream, void** parameters,
                                void** extra) {
    EMU_ENTER("cuLaunchKernel", Needs::Context);
    return launch({grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, nullptr, 0}, function, parameters, extra);
}

EMU_API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
    EMU_ENTER("cuLaunchKernelEx", Needs::Context);
    return launch(*config, function, parameters, extra);
}
